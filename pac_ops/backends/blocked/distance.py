"""Squared distances, once for each pair of pixels."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pac_ops.backends.blocked.rows import bands, crop
from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Pair, Window, pad


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d`."""
    padded = pad(guide.to(accumulate_dtype(guide.dtype)), window).contiguous()
    b, g, _, _ = padded.shape
    ho, wo = window.output_size(guide.shape[2], guide.shape[3])
    out = padded.new_zeros(b, 1, *window.kernel_size, ho, wo)  # zero at the centre
    for n in range(b):
        for pairs in _pairs(window, ho, wo):
            between = padded.new_empty(pairs.size)
            for rows in pairs.bands(g):
                one, other = pairs.pixels(padded[n], rows)
                torch.sum((one - other).square_(), dim=0, out=between[rows])
            out[n, 0][pairs.tap] = between[pairs.starts]
            out[n, 0][pairs.opposite] = between[pairs.ends]
    return out


def gaussian_kernel2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.gaussian_kernel2d`."""
    return squared_distance2d(guide, window).mul_(-0.5).exp_()


def squared_distance2d_backward(grad: Tensor, guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d_backward`."""
    padded = pad(guide.to(accumulate_dtype(guide.dtype)), window).contiguous()
    b, g, _, _ = padded.shape
    ho, wo = grad.shape[-2:]
    grad_padded = torch.zeros_like(padded)
    for n in range(b):
        for pairs in _pairs(window, ho, wo):
            between = padded.new_zeros(pairs.size)
            between[pairs.starts] += grad[n, 0][pairs.tap]
            between[pairs.ends] += grad[n, 0][pairs.opposite]
            between *= 2
            for rows in pairs.bands(g):
                one, other = pairs.pixels(padded[n], rows)
                pull = (one - other).mul_(between[rows])
                to_one, to_other = pairs.pixels(grad_padded[n], rows)
                to_one += pull
                to_other -= pull
    return crop(grad_padded, window).to(guide.dtype)


class _Pairs(NamedTuple):
    """All pixels p and p + offset, p in a rectangle of the padded image: a tap and the one opposite of it.

    For the window centred on c, the tap sees the pair that starts at c, its opposite the one that ends there.
    """

    tap: Pair
    opposite: Pair
    offset: Pair
    origin: Pair  # of the rectangle, in the padded image
    size: Pair  # of the rectangle
    starts: tuple[slice, slice]  # where in the rectangle the tap's pairs are, one a window
    ends: tuple[slice, slice]  # and those of the opposite tap

    def bands(self, channels: int) -> Iterator[slice]:
        """Rows of the rectangle, few enough that their channels stay in the cache."""
        return bands(self.size[0], 4 * channels * self.size[1])

    def pixels(self, image: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Both ends of the pairs in some rows of the rectangle, as views: [C, rows, columns] each."""
        ends = []
        for y, x in (self.origin, (self.origin[0] + self.offset[0], self.origin[1] + self.offset[1])):
            ends.append(image[:, y + rows.start : y + rows.stop, x : x + self.size[1]])
        return ends[0], ends[1]


def _pairs(window: Window, ho: int, wo: int) -> Iterator[_Pairs]:
    """The pairs of each tap after the centre, which are also those of each tap before it."""
    (kh, kw), (sy, sx), _, (dy, dx) = window
    middle = (kh // 2, kw // 2)
    rows, columns = (ho - 1) * sy + 1, (wo - 1) * sx + 1  # spanned by the centres of all windows
    for i in range(kh):
        for j in range(kw):
            if (i, j) <= middle:
                continue
            y, x = (i - middle[0]) * dy, (j - middle[1]) * dx
            left, right = max(x, 0), max(-x, 0)
            yield _Pairs(
                tap=(i, j),
                opposite=(kh - 1 - i, kw - 1 - j),
                offset=(y, x),
                origin=(middle[0] * dy - y, middle[1] * dx - left),
                size=(rows + y, columns + abs(x)),
                starts=(slice(y, y + rows, sy), slice(left, left + columns, sx)),
                ends=(slice(0, rows, sy), slice(right, right + columns, sx)),
            )
