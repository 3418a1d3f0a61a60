"""Tile sizes of kernels: as measured, by a model of the chip, or, where `PAC_OPS_TUNE=1` asks for it, timed."""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator"

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pac_ops.backends.triton.launch import INTERPRETED, Run, is_traced
from pac_ops.backends.triton.winners import winner

Meta = dict[str, int]
# Pixels, output and input channels of a tile; warps and stages; and, of one that descriptors read, its width.
Tiles = tuple[int, ...]
# Cycles of a multiprocessor for one step of a tile: the longer of what its matrix units take and what issuing its
# instructions takes, as counted in the binaries for sm_90 (`benchmarks.sm90`). By how factors are multiplied.
Cycles = Mapping[str, Mapping[Tiles, int]]
NARROW, TF32, FULL = "16 bits", "tf32", "ieee"

TUNE = "PAC_OPS_TUNE"
OF_DESCRIPTORS = 17500  # cycles that tiles of boxes must save: the 10 us that making descriptors takes at each call
SHORTLIST = 4  # tiles that are timed: each takes seconds to compile
_CHANNELS = {"BLOCK_O": "outer", "BLOCK_I": "inner"}  # what a tile's channels need not exceed, by arguments' names
_SHARED = 99 * 2**10  # bytes a program may have on the smallest chip, where torch does not tell


def products(
    cycles: Cycles,
    arguments: dict[str, Any],
    steps: Callable[[Meta, int], float],
    device: torch.device,
    summed: str,
    kernel: str,
    *,
    boxed: bool = False,
) -> list[Meta]:
    """Tile sizes for a kernel of matrix products, the fastest first, no more than a shortlist.

    First comes what was measured (`winners`), where it was, then what is fastest by the model.

    Args:
        cycles: of each tile.
        arguments: of the kernel.
        steps: of one multiprocessor, from tile sizes and how many multiprocessors there are.
        device: to run on.
        summed: the side of a tile that a step sums over.
        kernel: its name in `winners`.
        boxed: whether descriptors can read the tensors.
    """
    if INTERPRETED:  # small, so that small tests have several tiles and partial ones
        return [{"BLOCK_P": 64, "BLOCK_O": 16, "BLOCK_I": 16}]
    wide = arguments["OPERAND"] == tl.float32
    how = arguments["PRECISION"] if wide else NARROW
    chip = torch.cuda.get_device_properties(device)
    count = multiprocessors(device)
    room = getattr(chip, "shared_memory_per_block_optin", _SHARED)
    most = {tile: max(16, triton.next_power_of_2(int(arguments[name]))) for tile, name in _CHANNELS.items()}
    won = winner(kernel, how, arguments, chip)
    costs: dict[tuple[tuple[str, int], ...], float] = {}
    for tile, taken in cycles[how].items():
        meta = _meta(*tile)
        fitting = {name: min(size, most.get(name, size)) for name, size in meta.items()}
        if _shared(fitting, summed, 4 if wide else 2) > room or ("BOX" in meta and not boxed):
            continue
        shrunk = fitting["BLOCK_O"] * fitting["BLOCK_I"] / (meta["BLOCK_O"] * meta["BLOCK_I"])
        each: Any = steps(fitting, count)
        if not isinstance(each, (int, float)):  # sizes are symbols in a trace, which stay open: as of large ones
            each = 1 / math.prod(size for name, size in fitting.items() if name.startswith("BLOCK"))
        cost = each * taken * (0.5 + 0.5 * shrunk) + OF_DESCRIPTORS * ("BOX" in meta)
        costs.setdefault(tuple(fitting.items()), cost)
        if tile == won:
            costs[tuple(fitting.items())] = 0.0
    return [dict(meta) for meta in sorted(costs, key=costs.__getitem__)[:SHORTLIST]]


def _meta(pixels: int, outer: int, inner: int, warps: int, stages: int, box: int = 0) -> Meta:
    meta = {"BLOCK_P": pixels, "BLOCK_O": outer, "BLOCK_I": inner, "num_warps": warps, "num_stages": stages}
    return meta | {"BOX": box} if box else meta


def _shared(meta: Meta, summed: str, size: int) -> int:
    """Bytes of shared memory at most: both factors of each stage."""
    sides = sum(value for name, value in meta.items() if name.startswith("BLOCK") and name != summed)
    return meta["num_stages"] * sides * meta[summed] * size


def fastest(launches: Callable[[Meta], Run], metas: Sequence[Meta], sums: Sequence[int]) -> Run:
    """The launch of the first tile sizes; where a user asks for it, of those that are fastest at the first call.

    In a trace nothing can be timed: it would hold the launches of all.

    Args:
        launches: from tile sizes to a launch.
        metas: the tile sizes.
        sums: which of its tensors the kernel adds to.
    """
    wanted = os.environ.get(TUNE) == "1" and len(metas) > 1 and not INTERPRETED and not is_traced()
    if not wanted or torch.are_deterministic_algorithms_enabled():
        return launches(metas[0])
    return Contest([launches(meta) for meta in metas], sums)


class Contest:
    """Launches for one job, of which the fastest is kept. While a CUDA graph is captured nothing is timed."""

    def __init__(self, launches: Sequence[Run], sums: Sequence[int]):
        """Take the launches, and which of their tensors they add to."""
        self._launches, self._sums = launches, sums
        self._best: Run | None = None

    def __call__(self, *tensors: Tensor | None) -> None:
        """Run on these tensors."""
        if self._best is None and torch.cuda.is_current_stream_capturing():
            self._launches[0](*tensors)
            return
        if self._best is None:
            times = [triton.testing.do_bench(lambda run=run: run(*tensors), 5, 20) for run in self._launches]
            self._best = self._launches[times.index(min(times))]
            for x in (tensors[k] for k in self._sums):
                if x is not None:
                    x.zero_()
        self._best(*tensors)


def elementwise(steps: Sequence[int], channels: int) -> Meta:
    """Tile sizes for kernels without matrix products, by what lies side by side: pixels or channels."""
    if INTERPRETED:
        return {"BLOCK_P": 64, "BLOCK_O": 4}
    pixels, most = (32, 32) if steps[1] == 1 else (128, 8)
    return {"BLOCK_P": pixels, "BLOCK_O": min(most, triton.next_power_of_2(max(1, int(channels)))), "num_warps": 4}


def splits(device: torch.device, programs: int, most: int) -> int:
    """Into how many parts to split a sum so that so many programs fill the device, four times over."""
    return max(1, min(most, 4 * multiprocessors(device) // max(1, programs)))


def multiprocessors(device: torch.device) -> int:
    """How many programs a device runs at once."""
    return 1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count
