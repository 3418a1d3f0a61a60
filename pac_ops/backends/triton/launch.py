"""Launches of kernels: tile sizes and their tuning, strides, index type, precision of products."""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator"

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pac_ops.backends.triton import indexing
from pac_ops.backends.triton.walk import Walk

# Under Triton's interpreter (TRITON_INTERPRET=1 when this package is imported) kernels run on CPU tensors.
INTERPRETED = not isinstance(indexing.is_in, triton.JITFunction)
INT32_OFFSETS = 2**31 - 2**20  # offsets beyond this are computed in 64 bits; the margin is for a last, partial tile

Meta = dict[str, int]
Tiles = tuple[int, int, int, int, int]  # pixels, output and input channels of a tile; warps and stages
_CHANNELS = {"BLOCK_O": "outer", "BLOCK_I": "inner"}  # what a tile's channels need not exceed, by arguments' names

_traced: ContextVar[bool] = ContextVar("pac_ops_triton_traced", default=False)


@contextmanager
def traced() -> Iterator[None]:
    """In this block launches are written into the graph that `torch.compile` is tracing, and do not run."""
    token = _traced.set(True)
    try:
        yield
    finally:
        _traced.reset(token)


def launch(kernel: Any, grid: tuple[int, ...], like: Tensor, arguments: dict[str, Any], meta: Meta) -> None:
    """Run a kernel with tile sizes chosen beforehand, on the tensor's device."""
    if math.prod(grid):
        _start(kernel, grid, like, arguments | (_without_options(meta) if INTERPRETED else meta))


def _start(kernel: Any, grid: Any, like: Tensor, arguments: dict[str, Any]) -> None:
    if _traced.get():
        torch.library.wrap_triton(kernel)[grid](**arguments)
        return
    with torch.cuda.device_of(like):
        kernel[grid](**arguments)


class Tuned:
    """A kernel whose tile sizes are timed on the first call with new values of `key`, and kept.

    Under the interpreter, which has no times, and where results must not change from run to run, which tile sizes
    chosen by timing would make them do, the tiles are the first of the list.
    """

    def __init__(
        self,
        kernel: Any,
        tiles: Sequence[Tiles],
        float32_tiles: Sequence[Tiles],
        key: list[str],
        sums: list[str],
    ):
        """Take the kernel and the tile sizes to try.

        Args:
            kernel: what to launch.
            tiles: the first, the default, must fit in the shared memory of any GPU.
            float32_tiles: those for products in full float32, which no matrix unit takes: larger ones spill.
            key: names of arguments; a new value of one is timed anew.
            sums: names of tensors that the kernel adds to, which must be 0 before each timed run.
        """
        self._kernel, self._sums = kernel, sums
        self._metas, self._float32_metas = ([_meta(*each) for each in given] for given in (tiles, float32_tiles))
        self._tuner = None
        if not INTERPRETED:

            def choices(_: Any, named: dict[str, Any], **others: Any) -> list[Any]:
                return self._configs({**named, **others})

            configs, prune = [_config(meta) for meta in self._metas], {"early_config_prune": choices}
            self._tuner = triton.autotune(configs, key, prune_configs_by=prune, reset_to_zero=sums)(kernel)

    def launch(self, grid: Callable[[Meta], tuple[int, ...]], like: Tensor, arguments: dict[str, Any]) -> None:
        """Run the kernel on a grid that follows from the tile sizes."""
        meta = self.default(arguments)
        if self._tuner is None or torch.are_deterministic_algorithms_enabled():
            launch(self._kernel, grid(meta), like, arguments, meta)
        elif math.prod(grid(meta)):
            tuner = self._tuner
            if _traced.get():  # where Inductor takes configurations away itself, it forgets what to clear
                tuner = triton.autotune(self._configs(arguments), [], reset_to_zero=self._sums)(self._kernel)
            absent = {name: like.new_empty(1, dtype=torch.float32) for name in self._sums if arguments[name] is None}
            _start(tuner, grid, like, arguments | absent)  # as Triton 3.6 would clear None too

    def default(self, arguments: dict[str, Any]) -> Meta:
        """The tile sizes that are used where none are timed."""
        return self._choices(arguments)[0]

    def _configs(self, arguments: dict[str, Any]) -> list[Any]:
        distinct = {tuple(meta.items()): meta for meta in self._choices(arguments)}
        return [_config(meta) for meta in distinct.values()]

    def _choices(self, arguments: dict[str, Any]) -> list[Meta]:
        if INTERPRETED:  # small, so that small tests have several tiles and partial ones; few, since each is slow
            return [{"BLOCK_P": 64, "BLOCK_O": 16, "BLOCK_I": 16}]
        full = arguments["OPERAND"] == tl.float32 and arguments["PRECISION"] == "ieee"
        most = {tile: max(16, triton.next_power_of_2(int(arguments[name]))) for tile, name in _CHANNELS.items()}
        metas = self._float32_metas if full else self._metas
        return [{name: min(size, most.get(name, size)) for name, size in meta.items()} for meta in metas]


def _meta(pixels: int, outer: int, inner: int, warps: int, stages: int) -> Meta:
    return {"BLOCK_P": pixels, "BLOCK_O": outer, "BLOCK_I": inner, "num_warps": warps, "num_stages": stages}


def _config(meta: Meta) -> Any:
    options = {"num_warps": meta["num_warps"], "num_stages": meta["num_stages"]}
    return triton.Config(_without_options(meta), **options)


def _without_options(meta: Meta) -> Meta:
    return {name: value for name, value in meta.items() if name.startswith("BLOCK")}


def tensor(name: str, x: Tensor | None, axes: str = "bcyx") -> dict[str, Any]:
    """A tensor and its strides as arguments of a kernel, each by itself, as Inductor passes no tuples."""
    steps = (0,) * len(axes) if x is None else x.stride()
    return {name: x, **{f"{name}_stride_{axis}": step for axis, step in zip(axes, steps, strict=True)}}


def walked(walk: Walk, size: Sequence[int], x: Tensor) -> dict[str, Any]:
    """The arguments of a kernel that walks from an image of a size, (height, width), to the pixels of `x`."""
    return {
        "batch": x.shape[0],
        "height": size[0],
        "width": size[1],
        "x_height": x.shape[2],
        "x_width": x.shape[3],
        "ROWS": walk.rows,
        "COLUMNS": walk.columns,
    }


def index_type(*tensors: Tensor | None) -> Any:
    """32-bit offsets where they reach every element of every tensor, else 64-bit ones."""
    furthest = max(
        sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) for x in tensors if x is not None
    )
    return tl.int64 if furthest > INT32_OFFSETS else tl.int32


def products(x: Tensor, other: Tensor) -> dict[str, Any]:
    """The arguments of a kernel of matrix products of `x`, which is read under the taps, and another tensor."""
    return {"CHANNELS_LAST": x.stride(1) == 1, "OPERAND": operand_type(x, other), "PRECISION": precision()}


def operand_type(*tensors: Tensor) -> Any:
    """What the factors of matrix products are converted to, one of Triton's dtypes."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    if INTERPRETED and dtype == torch.bfloat16:
        return (
            tl.float32
        )  # the interpreter's dot takes bfloat16's bits for integers; in float32 such products are exact
    return {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(dtype, tl.float32)


def elementwise_tiles(x: Tensor, channels: int) -> Meta:
    """Tile sizes for kernels without matrix products, by which of pixels and channels lie side by side."""
    if INTERPRETED:
        return {"BLOCK_P": 64, "BLOCK_O": 4}
    pixels, most = (32, 32) if x.stride(1) == 1 else (128, 8)
    return {"BLOCK_P": pixels, "BLOCK_O": min(most, triton.next_power_of_2(max(1, int(channels)))), "num_warps": 4}


def cdiv(a: int, b: int) -> int:
    """How many parts of size b cover a."""
    return -(-a // b)


def precision() -> str:
    """How float32 factors are multiplied: as PyTorch's own convolutions may on a GPU, by default in TF32."""
    switch = getattr(torch.backends.cudnn, "conv", None)
    if switch is None:  # before PyTorch 2.9
        return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"
    return "tf32" if switch.fp32_precision == "tf32" else "ieee"


def splits(like: Tensor, programs: int, most: int) -> int:
    """Into how many parts to split a sum so that so many programs fill the device, four times over."""
    wanted = 4 * (1 if INTERPRETED else torch.cuda.get_device_properties(like.device).multi_processor_count)
    return max(1, min(most, wanted // max(1, programs)))
