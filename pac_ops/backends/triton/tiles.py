"""Tile sizes: the ones shipped, and, where a user asks for it, the fastest of a few."""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator"

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from pac_ops.backends.triton.launch import INTERPRETED

Meta = dict[str, int]
Tiles = tuple[int, int, int, int, int]  # pixels, output and input channels of a tile; warps and stages
_CHANNELS = {"BLOCK_O": "outer", "BLOCK_I": "inner"}  # what a tile's channels need not exceed, by arguments' names


def products(tiles: Sequence[Tiles], full: Sequence[Tiles], arguments: dict[str, Any]) -> list[Meta]:
    """Tile sizes for a kernel of matrix products with these arguments, the default first.

    Args:
        tiles: to choose from.
        full: those for products in full float32, which no matrix unit takes: larger ones spill.
        arguments: of the kernel.
    """
    if INTERPRETED:  # small, so that small tests have several tiles and partial ones; few, since each is slow
        return [{"BLOCK_P": 64, "BLOCK_O": 16, "BLOCK_I": 16}]
    ieee = arguments["OPERAND"] == tl.float32 and arguments["PRECISION"] == "ieee"
    most = {tile: max(16, triton.next_power_of_2(int(arguments[name]))) for tile, name in _CHANNELS.items()}
    metas = [_meta(*each) for each in (full if ieee else tiles)]
    fitting = [{name: min(size, most.get(name, size)) for name, size in meta.items()} for meta in metas]
    return list({tuple(meta.items()): meta for meta in fitting}.values())


def _meta(pixels: int, outer: int, inner: int, warps: int, stages: int) -> Meta:
    return {"BLOCK_P": pixels, "BLOCK_O": outer, "BLOCK_I": inner, "num_warps": warps, "num_stages": stages}


def elementwise(steps: Sequence[int], channels: int) -> Meta:
    """Tile sizes for kernels without matrix products, by what lies side by side: pixels or channels."""
    if INTERPRETED:
        return {"BLOCK_P": 64, "BLOCK_O": 4}
    pixels, most = (32, 32) if steps[1] == 1 else (128, 8)
    return {"BLOCK_P": pixels, "BLOCK_O": min(most, triton.next_power_of_2(max(1, int(channels)))), "num_warps": 4}


def splits(device: torch.device, programs: int, most: int) -> int:
    """Into how many parts to split a sum so that so many programs fill the device, four times over."""
    wanted = 4 * (1 if INTERPRETED else torch.cuda.get_device_properties(device).multi_processor_count)
    return max(1, min(most, wanted // max(1, programs)))
