"""Where the taps of a sliding window fall: the one place that does this arithmetic."""

from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[int, int]


class Window(NamedTuple):
    """A sliding window, as (vertical, horizontal) pairs: `torch.nn.Conv2d`'s arguments, made explicit.

    Tap (i, j) of output (y, x) reads row `y * stride - padding + i * dilation` of the input, columns
    likewise. The window's centre is tap (kh // 2, kw // 2).
    """

    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def output_size(self, height: int, width: int) -> Pair:
        """Rows and columns of the output, as `torch.nn.Conv2d` counts them. May be <= 0."""
        rows, columns = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in zip((height, width), *self, strict=True)
        )
        return rows, columns


def valid_taps(window: Window, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Which taps fall inside a `height` x `width` image: bool, [kh, kw, Ho, Wo]."""
    inside = []
    for axis, size in enumerate((height, width)):
        out = window.output_size(height, width)[axis]
        first = torch.arange(out, device=device) * window.stride[axis] - window.padding[axis]
        taps = torch.arange(window.kernel_size[axis], device=device) * window.dilation[axis]
        position = taps[:, None] + first[None, :]  # [k, out]
        inside.append((position >= 0) & (position < size))
    rows, columns = inside
    return rows[:, None, :, None] & columns[None, :, None, :]
