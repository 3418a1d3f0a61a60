"""Where the taps of a sliding window fall: the one place that does this arithmetic."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


def size_of(x: Tensor) -> Pair:
    """Height and width of an image, [B, C, H, W]."""
    return x.shape[2], x.shape[3]


def any_open(*sizes: int) -> bool:
    """Whether an exporter leaves one of these open."""
    return any(isinstance(n, torch.SymInt) for n in sizes)


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
        (kh, kw), (sy, sx), (py, px), (dy, dx) = self
        return (height + 2 * py - dy * (kh - 1) - 1) // sy + 1, (width + 2 * px - dx * (kw - 1) - 1) // sx + 1

    def transposed_size(self, height: int, width: int, output_padding: Pair) -> Pair:
        """Rows and columns of the transposed operator's output, as `torch.nn.ConvTranspose2d` counts them."""
        sides = zip((height, width), *self, output_padding, strict=True)
        rows, columns = ((size - 1) * s - 2 * p + d * (k - 1) + 1 + e for size, k, s, p, d, e in sides)
        return rows, columns

    def ceil_padding(self, height: int, width: int) -> Pair:
        """Rows and columns to add at the bottom and the right for `torch.nn.AvgPool2d`'s `ceil_mode`."""
        extra: list[int] = []  # symbolic ones among them, under torch.export
        for size, k, s, p, d in zip((height, width), *self, strict=True):
            span = d * (k - 1) + 1
            # The last window ends after the image or with it, and starts inside it or its left padding. Which of the
            # two says how many there are does not depend on the size: exporters would keep a branch on it.
            if span >= s + p:
                spare = size + 2 * p - span
                extra.append((spare + s - 1) // s * s - spare)
            else:
                extra.append(max(0, span - p - 1))  # windows that end before it see none of them
        return extra[0], extra[1]

    def stepping(self) -> "Window":
        """The window that slides over the result of `spread`."""
        return Window(self.kernel_size, dilation=self.dilation)

    def on_output(self) -> "Window":
        """The window of a transposed operator's adapting kernel: on the output's grid, one window a pixel."""
        (kh, kw), (dy, dx) = self.kernel_size, self.dilation
        return Window(self.kernel_size, (1, 1), (dy * (kh // 2), dx * (kw // 2)), self.dilation)


def pad(x: Tensor, window: Window) -> Tensor:
    """An image with the window's zero padding around it."""
    rows, columns = window.padding
    return x if window.padding == (0, 0) else F.pad(x, (columns, columns, rows, rows))


def taps(padded: Tensor, window: Window, ho: int, wo: int) -> Iterator[tuple[int, int, Tensor]]:
    """For each tap, a view of the pixels of a padded image that it reads: (i, j, [..., Ho, Wo])."""
    (kh, kw), (sy, sx), _, (dy, dx) = window
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dy, i * dy + (ho - 1) * sy + 1, sy)
            columns = slice(j * dx, j * dx + (wo - 1) * sx + 1, sx)
            yield i, j, padded[..., rows, columns]


def all_taps(x: Tensor, window: Window) -> Tensor:
    """The pixels that all taps read, zero outside the image: [B, C, H, W] -> [B, C, kh, kw, Ho, Wo], copied."""
    size = window.output_size(x.shape[2], x.shape[3])
    every = torch.stack([view for _, _, view in taps(pad(x, window), window, *size)], dim=2)
    b, c = x.shape[:2]
    return every.view(b, c, *window.kernel_size, *size)


def spread(x: Tensor, window: Window, ho: int, wo: int) -> Tensor:
    """Stride - 1 zeros between pixels, then padding, for a window of stride 1 without padding to slide over.

    [B, C, H, W] -> [B, C, Ho + dy (kh - 1), Wo + dx (kw - 1)], for the transposed operator's output size.
    """
    (kh, kw), (sy, sx), (py, px), (dy, dx) = window
    b, c, height, width = x.shape
    # Also stride - 1 after the last pixel, which the padding takes off again; nothing in place, for exporters.
    inserted = F.pad(x.view(b, c, height, 1, width, 1), (0, sx - 1, 0, 0, 0, sy - 1)).flatten(4).flatten(2, 3)
    top, left = dy * (kh - 1) - py, dx * (kw - 1) - px  # negative where the output is cropped
    bottom = ho + dy * (kh - 1) - top - inserted.shape[2]
    right = wo + dx * (kw - 1) - left - inserted.shape[3]
    return F.pad(inserted, (left, right, top, bottom))


def gather(grad_spread: Tensor, window: Window, height: int, width: int) -> Tensor:
    """The gradient of `spread`: the pixels that are not inserted zeros, padding cropped: -> [B, C, H, W]."""
    (kh, kw), (sy, sx), (py, px), (dy, dx) = window
    top, left = dy * (kh - 1) - py, dx * (kw - 1) - px
    rows, columns = max(0, (height - 1) * sy + 1), max(0, (width - 1) * sx + 1)
    bottom, right = grad_spread.shape[2] - top - rows, grad_spread.shape[3] - left - columns
    inserted = F.pad(grad_spread, (-left, -right, -top, -bottom))
    return inserted[:, :, ::sy, ::sx].contiguous()


def turned(weight: Tensor, groups: int) -> Tensor:
    """A transposed convolution's weight as that of a convolution, and back: taps mirrored, channels swapped."""
    by_group: Tensor = weight.unflatten(0, (groups, -1))
    return by_group.transpose(1, 2).flatten(0, 1).flip(2, 3).contiguous()
