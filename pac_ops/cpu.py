"""The fast CPU path: the same arithmetic as `reference`, a cache-sized block of rows at a time.

Nothing here stores k*k copies of an activation. The taps of a block of output rows are strided views of the
zero-padded input; they are multiplied by K into one buffer that stays in the cache, and one matrix product
consumes it. The backward pass walks the same blocks. Distances are computed once for each pair of pixels: the
distance at offset d seen from i is the distance at -d seen from i + d.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Pair, Window

# Elements of a block's buffer: 4 MiB in float32. Smaller blocks make thin, slow matrix products, larger ones leave
# the cache; from 2**19 to 2**21 it made little difference on the shapes in benchmarks/.
BLOCK_ELEMENTS = 2**20


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv2d`."""
    wide = accumulate_dtype(input.dtype)
    kernel, filters = kernel.to(wide), weight.to(wide).reshape(groups, weight.shape[0] // groups, -1)
    padded = _pad(input.to(wide), window)
    ho, wo = window.output_size(input.shape[2], input.shape[3])
    out = padded.new_empty(input.shape[0], weight.shape[0], ho, wo)
    start = padded.new_zeros(()) if bias is None else bias.to(wide).view(groups, -1, 1)
    adapted = padded.new_empty(0)
    for n, rows in _blocks(padded, window, out):
        taps = _taps(padded[n], window, rows, wo)  # [C, kh, kw, rows, Wo], a view
        torch.mul(taps, kernel[n, :, :, :, rows], out=adapted.resize_(taps.shape))
        columns = adapted.view(groups, filters.shape[2], -1)
        block = out[n, :, rows].view(groups, filters.shape[1], -1)
        torch.baddbmm(start, filters, columns, beta=0 if bias is None else 1, out=block)
    return out.to(input.dtype)


def pacconv2d_backward(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """See `reference.pacconv2d_backward`."""
    wide = accumulate_dtype(input.dtype)
    k_ij, g_out = kernel.to(wide), grad.to(wide).contiguous()
    filters = weight.to(wide).reshape(groups, weight.shape[0] // groups, -1)  # [g, O/g, C/g*kh*kw]
    padded = _pad(input.to(wide), window)
    wo = grad.shape[3]
    needs_input, needs_kernel, needs_weight = needs
    grad_padded = torch.zeros_like(padded) if needs_input else None
    grad_kernel = k_ij.new_empty(k_ij.shape) if needs_kernel else None
    grad_filters = torch.zeros_like(filters) if needs_weight else None
    buffer = padded.new_empty(0)
    for n, rows in _blocks(padded, window, g_out):
        taps = _taps(padded[n], window, rows, wo)  # [C, kh, kw, rows, Wo], a view
        k_block = k_ij[n, :, :, :, rows]  # [1, kh, kw, rows, Wo]
        g_block = g_out[n, :, rows].reshape(groups, filters.shape[1], -1)
        buffer.resize_(taps.shape)
        columns = buffer.view(groups, filters.shape[2], -1)
        if grad_filters is not None:
            torch.mul(taps, k_block, out=buffer)
            grad_filters.baddbmm_(g_block, columns.mT)
        if grad_padded is None and grad_kernel is None:
            continue
        torch.bmm(filters.mT, g_block, out=columns)  # dL/d(K v), of which both other gradients are made
        if grad_kernel is not None:
            grad_kernel[n, 0, :, :, rows] = (buffer * taps).sum(dim=0)
        if grad_padded is not None:
            _scatter(buffer.mul_(k_block), grad_padded[n], window, rows)
    return (
        None if grad_padded is None else _crop(grad_padded, window).to(input.dtype),
        None if grad_kernel is None else grad_kernel.to(kernel.dtype),
        None if grad_filters is None else grad_filters.view(weight.shape).to(weight.dtype),
    )


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d`."""
    padded = _pad(guide.to(accumulate_dtype(guide.dtype)), window)
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


def squared_distance2d_backward(grad: Tensor, guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d_backward`."""
    padded = _pad(guide.to(accumulate_dtype(guide.dtype)), window)
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
    return _crop(grad_padded, window).to(guide.dtype)


# --- blocks of output rows --------------------------------------------------------------------------------


def _blocks(padded: Tensor, window: Window, out: Tensor) -> Iterator[tuple[int, slice]]:
    """Image and output rows of each block."""
    kh, kw = window.kernel_size
    b, _, ho, wo = out.shape
    count = max(1, BLOCK_ELEMENTS // max(1, padded.shape[1] * kh * kw * wo))
    for n in range(b):
        for first in range(0, ho, count):
            yield n, slice(first, min(first + count, ho))


def _taps(image: Tensor, window: Window, rows: slice, wo: int) -> Tensor:
    """What each tap of each window of some output rows sees, as a view: [C, H, W] -> [C, kh, kw, rows, Wo]."""
    (kh, kw), (sy, sx), _, (dy, dx) = window
    channel, row, column = image.stride()
    size = (image.shape[0], kh, kw, rows.stop - rows.start, wo)
    steps = (channel, dy * row, dx * column, sy * row, sx * column)
    return image.as_strided(size, steps, image.storage_offset() + rows.start * sy * row)


def _scatter(values: Tensor, image: Tensor, window: Window, rows: slice) -> None:
    """Add what each tap holds to the pixel it came from, the transpose of `_taps`.

    One tap at a time: the taps of one view overlap, and adding to overlapping memory is not defined.
    """
    taps = _taps(image, window, rows, values.shape[-1])
    kh, kw = window.kernel_size
    for i in range(kh):
        for j in range(kw):
            taps[:, i, j] += values[:, i, j]


def _pad(x: Tensor, window: Window) -> Tensor:
    rows, columns = window.padding
    return (x if window.padding == (0, 0) else F.pad(x, (columns, columns, rows, rows))).contiguous()


def _crop(padded: Tensor, window: Window) -> Tensor:
    rows, columns = window.padding
    return padded[:, :, rows : padded.shape[2] - rows, columns : padded.shape[3] - columns].contiguous()


# --- pairs of pixels --------------------------------------------------------------------------------------


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
        count = max(1, BLOCK_ELEMENTS // max(1, 4 * channels * self.size[1]))
        for first in range(0, self.size[0], count):
            yield slice(first, min(first + count, self.size[0]))

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
