"""Tiles that were the fastest on a GPU: for a kernel, how factors are multiplied, the layout, and a call's sizes.

A call takes the tile of the measured one whose sizes are its own up to a factor of 2; where there is none, or on
another chip, the model of `tiles` chooses.
"""

from collections.abc import Mapping
from typing import Any

from pac_ops.backends.triton.measured import CHIP, MEASURED

SUM, WITH_GRADIENT, OF_WEIGHT = "sum", "sum and K's gradient", "weight's gradient"
Key = tuple[str, str, bool, int, int, int]


def key(kernel: str, how: str, *, last: bool, pixels: int, inner: int, outer: int) -> Key:
    """What calls have in common that take one tile."""
    # From one power of 2, not included, to the next.
    pixels, inner, outer = ((size - 1).bit_length() for size in (pixels, inner, outer))
    return kernel, how, last, pixels, inner, outer


def winner(kernel: str, how: str, arguments: Mapping[str, Any], chip: Any) -> tuple[int, ...] | None:
    """The tile measured for a kernel with these arguments on this chip, where there is one."""
    if not MEASURED or (chip.major, chip.minor, chip.multi_processor_count) != CHIP:
        return None
    sizes = [arguments[name] for name in ("batch", "height", "width", "inner", "outer")]
    if not all(isinstance(size, int) for size in sizes):  # symbols, in a trace
        return None
    batch, height, width, inner, outer = sizes
    last, pixels = arguments["x_stride_c"] == 1, batch * height * width
    return MEASURED.get(key(kernel, how, last=last, pixels=pixels, inner=inner, outer=outer))
