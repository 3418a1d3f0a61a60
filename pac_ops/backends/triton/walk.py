"""Which pixel a tap reads, as one affine map an axis, so that one kernel serves every direction of every operator."""

import math
from typing import NamedTuple

from pac_ops.geometry import Window


class Axis(NamedTuple):
    """Tap t of pixel p reads pixel (p * multiply + offset + t * step) / divide, or none where that is not whole.

    One of multiply and divide is 1. The taps of one pixel that read anything are `jump` apart.
    """

    multiply: int
    divide: int
    offset: int
    step: int
    taps: int
    jump: int

    def __repr__(self) -> str:
        """An expression that needs no imports: Inductor writes a kernel's constants into its code so."""
        return f"__import__({__name__!r}, fromlist=['Axis']).Axis{tuple(self)}"


class Walk(NamedTuple):
    """The maps of rows and of columns."""

    rows: Axis
    columns: Axis

    @property
    def back(self) -> "Walk":
        """The way from the pixel read to the pixel that reads it, by the same tap."""
        rows, columns = (_axis(a.divide, a.multiply, -a.offset, -a.step, a.taps) for a in self)
        return Walk(rows, columns)

    @property
    def phases(self) -> int:
        """How many classes of pixels there are that differ in which taps read anything."""
        return self.rows.divide * self.columns.divide


def sliding(window: Window) -> Walk:
    """From an output pixel of a convolution to the input's."""
    rows, columns = (_axis(s, 1, -p, d, k) for k, s, p, d in zip(*window, strict=True))
    return Walk(rows, columns)


def spreading(window: Window) -> Walk:
    """From an output pixel of a transposed convolution, under tap t of K, to the input's: skips inserted zeros.

    The weight's tap is the one opposite of K's.
    """
    rows, columns = (_axis(1, s, p - (k - 1) * d, d, k) for k, s, p, d in zip(*window, strict=True))
    return Walk(rows, columns)


def _axis(multiply: int, divide: int, offset: int, step: int, taps: int) -> Axis:
    # Under `torch.compile` sizes may be symbols; those of a window are constants of a kernel, and are fixed here.
    return Axis(*map(int, (multiply, divide, offset, step, taps, divide // math.gcd(divide, step))))
