"""The fast CPU path: the same arithmetic as `reference`, a cache-sized block of rows at a time.

Nothing here stores k*k copies of an activation. The taps of a block of output rows are strided views of the
zero-padded input; they are multiplied by K into one buffer that stays in the cache, and one matrix product
consumes it. The backward pass walks the same blocks. A transposed convolution is the backward pass of the
convolution that goes the other way, with K indexed from there; no inserted zero is ever multiplied. Pooling and
distances from given centres go tap by tap over a block. Distances between pixels are computed once for each pair:
the distance at offset d seen from i is the distance at -d seen from i + d.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pac_ops.cpu_resize import pacresize2d, pacresize2d_backward, resize_distance2d, resize_distance2d_backward
from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Pair, Window, pad, taps

__all__ = [
    "centred_distance2d",
    "centred_distance2d_backward",
    "gaussian_kernel2d",
    "pacconv2d",
    "pacconv2d_backward",
    "pacconv_transpose2d",
    "pacconv_transpose2d_backward",
    "pacpool2d",
    "pacpool2d_backward",
    "pacresize2d",
    "pacresize2d_backward",
    "resize_distance2d",
    "resize_distance2d_backward",
    "squared_distance2d",
    "squared_distance2d_backward",
]

# Elements of a block's buffer: 4 MiB in float32. Smaller blocks make thin, slow matrix products, larger ones leave
# the cache; from 2**19 to 2**21 it made little difference on the shapes in benchmarks/.
BLOCK_ELEMENTS = 2**20


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv2d`."""
    wide = accumulate_dtype(input.dtype)
    kernel, filters = kernel.to(wide), _by_group(weight.to(wide), groups)
    padded = pad(input.to(wide), window).contiguous()
    ho, wo = kernel.shape[-2:]
    out = padded.new_empty(input.shape[0], weight.shape[0], ho, wo)
    start = padded.new_zeros(()) if bias is None else bias.to(wide).view(groups, -1, 1)
    adapted = padded.new_empty(0)
    for n, rows in _blocks(input.shape[1], window, out):
        seen = _taps(padded[n], window, rows, wo)  # [C, kh, kw, rows, Wo], a view
        torch.mul(seen, kernel[n, :, :, :, rows], out=adapted.resize_(seen.shape))
        pixels = seen.shape[3] * wo
        columns = adapted.view(groups, filters.shape[2], pixels)
        block = out[n, :, rows].view(groups, filters.shape[1], pixels)
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
    filters = _by_group(weight.to(wide), groups)  # [g, O/g, C/g*kh*kw]
    (b, c, height, width), (py, px) = input.shape, window.padding
    needs_input, needs_kernel, needs_weight = needs
    padded = pad(input.to(wide), window).contiguous() if needs_kernel or needs_weight else None
    grad_padded = k_ij.new_zeros(b, c, height + 2 * py, width + 2 * px) if needs_input else None
    grad_kernel = torch.empty_like(k_ij) if needs_kernel else None
    grad_filters = torch.zeros_like(filters) if needs_weight else None
    buffer = k_ij.new_empty(0)
    for n, rows in _blocks(c, window, g_out):
        k_block = k_ij[n, :, :, :, rows]  # [1, kh, kw, rows, Wo]
        pixels = k_block.shape[3] * k_block.shape[4]
        g_block = g_out[n, :, rows].reshape(groups, filters.shape[1], pixels)
        buffer.resize_(c, *k_block.shape[1:])
        columns = buffer.view(groups, filters.shape[2], pixels)
        seen = buffer if padded is None else _taps(padded[n], window, rows, k_block.shape[-1])
        if grad_filters is not None:
            torch.mul(seen, k_block, out=buffer)
            grad_filters.baddbmm_(g_block, columns.mT)
        if grad_padded is None and grad_kernel is None:
            continue
        torch.bmm(filters.mT, g_block, out=columns)  # dL/d(K v), of which both other gradients are made
        if grad_kernel is not None:
            grad_kernel[n, 0, :, :, rows] = (buffer * seen).sum(dim=0)
        if grad_padded is not None:
            _scatter(buffer.mul_(k_block), grad_padded[n], window, rows)
    return (
        None if grad_padded is None else _crop(grad_padded, window).to(input.dtype),
        None if grad_kernel is None else grad_kernel.to(kernel.dtype),
        None if grad_filters is None else grad_filters.view(weight.shape).to(weight.dtype),
    )


def pacconv_transpose2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv_transpose2d`."""
    from_input = _seen_from_input(kernel, window, input.shape[2], input.shape[3])
    size = (input.shape[0], weight.shape[1] * groups, *kernel.shape[-2:])
    wide = accumulate_dtype(input.dtype)
    like_output = kernel.new_empty(1, dtype=wide).expand(size)  # only its shape counts for this gradient
    needs = (True, False, False)
    out, _, _ = pacconv2d_backward(input, like_output, from_input, weight, window, groups, needs)
    assert out is not None  # noqa: S101 (for the type checker)
    if bias is not None:
        out += bias.to(wide)[:, None, None]
    return out.to(input.dtype)


def pacconv_transpose2d_backward(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """See `reference.pacconv_transpose2d_backward`."""
    from_input = _seen_from_input(kernel, window, input.shape[2], input.shape[3])
    grad_input = None
    if needs[0]:
        grad_input = pacconv2d(grad, from_input, weight, None, window, groups)
    _, grad_kernel, grad_weight = pacconv2d_backward(
        input, grad, from_input, weight, window, groups, (False, *needs[1:])
    )
    if grad_kernel is not None:
        grad_kernel = _seen_from_output(grad_kernel, window, grad.shape[2], grad.shape[3])
    return grad_input, grad_kernel, grad_weight


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """See `reference.pacpool2d`."""
    wide = accumulate_dtype(input.dtype)
    kernel, padded = kernel.to(wide), pad(input.to(wide), window)
    ho, wo = kernel.shape[-2:]
    out = padded.new_zeros(*input.shape[:2], ho, wo)
    for n in range(input.shape[0]):
        for rows in _bands(ho, 4 * input.shape[1] * wo):
            block = out[n, :, rows]
            for i, j, v_j in _each_tap(padded[n], window, rows, wo):
                block.addcmul_(v_j, kernel[n, :, i, j, rows])
    return out.to(input.dtype)


def pacpool2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, window: Window, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacpool2d_backward`."""
    wide = accumulate_dtype(input.dtype)
    k_ij, g_i, padded = kernel.to(wide), grad.to(wide), pad(input.to(wide), window)
    ho, wo = kernel.shape[-2:]
    grad_padded = torch.zeros_like(padded) if needs[0] else None
    grad_kernel = torch.empty_like(k_ij) if needs[1] else None
    for n in range(input.shape[0]):
        for rows in _bands(ho, 4 * input.shape[1] * wo):
            g_block = g_i[n, :, rows]
            if grad_padded is not None:
                for i, j, to_v in _each_tap(grad_padded[n], window, rows, wo):
                    to_v.addcmul_(g_block, k_ij[n, :, i, j, rows])
            if grad_kernel is not None:
                for i, j, v_j in _each_tap(padded[n], window, rows, wo):
                    product = g_block * v_j
                    grad_kernel[n, :, i, j, rows] = product if kernel.shape[1] > 1 else product.sum(0, keepdim=True)
    return (
        None if grad_padded is None else _crop(grad_padded, window).to(input.dtype),
        None if grad_kernel is None else grad_kernel.to(kernel.dtype),
    )


def centred_distance2d(centre: Tensor, guide: Tensor, window: Window, asymmetric: bool) -> Tensor:
    """See `reference.centred_distance2d`."""
    wide = accumulate_dtype(guide.dtype)
    padded, c_i = pad(guide.to(wide), window), centre.to(wide)
    b, g, ho, wo = centre.shape
    out = padded.new_empty(b, 1, *window.kernel_size, ho, wo)
    for n in range(b):
        for rows in _bands(ho, 4 * g * wo):
            for i, j, f_j in _each_tap(padded[n], window, rows, wo):
                away = f_j - c_i[n, :, rows]
                if asymmetric:
                    away.clamp_min_(0)
                torch.sum(away.square_(), dim=0, out=out[n, 0, i, j, rows])
    return out


def centred_distance2d_backward(
    grad: Tensor, centre: Tensor, guide: Tensor, window: Window, asymmetric: bool
) -> tuple[Tensor, Tensor]:
    """See `reference.centred_distance2d_backward`."""
    wide = accumulate_dtype(guide.dtype)
    padded, c_i = pad(guide.to(wide), window), centre.to(wide)
    b, g, ho, wo = centre.shape
    grad_padded, grad_centre = torch.zeros_like(padded), torch.zeros_like(c_i)
    for n in range(b):
        for rows in _bands(ho, 4 * g * wo):
            views = zip(*(_each_tap(x[n], window, rows, wo) for x in (padded, grad_padded)), strict=True)
            for (i, j, f_j), (_, _, to_f) in views:
                away = f_j - c_i[n, :, rows]
                if asymmetric:
                    away.clamp_min_(0)
                pull = away.mul_(2 * grad[n, 0, i, j, rows])
                to_f += pull
                grad_centre[n, :, rows] -= pull
    return grad_centre.to(centre.dtype), _crop(grad_padded, window).to(guide.dtype)


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
    return _crop(grad_padded, window).to(guide.dtype)


# --- blocks of output rows --------------------------------------------------------------------------------


def _blocks(channels: int, window: Window, out: Tensor) -> Iterator[tuple[int, slice]]:
    """Image and output rows of each block, for a buffer of all taps of so many channels."""
    kh, kw = window.kernel_size
    b, _, ho, wo = out.shape
    for n in range(b):
        for rows in _bands(ho, channels * kh * kw * wo):
            yield n, rows


def _bands(rows: int, elements: int) -> Iterator[slice]:
    """Bands of rows, each of at most BLOCK_ELEMENTS where one row has so many `elements`; at least one row."""
    count = max(1, BLOCK_ELEMENTS // max(1, elements))
    for first in range(0, rows, count):
        yield slice(first, min(first + count, rows))


def _taps(image: Tensor, window: Window, rows: slice, wo: int) -> Tensor:
    """What each tap of each window of some output rows sees, as a view: [C, H, W] -> [C, kh, kw, rows, Wo]."""
    (kh, kw), (sy, sx), _, (dy, dx) = window
    channel, row, column = image.stride()
    size = (image.shape[0], kh, kw, rows.stop - rows.start, wo)
    steps = (channel, dy * row, dx * column, sy * row, sx * column)
    return image.as_strided(size, steps, image.storage_offset() + rows.start * sy * row)


def _each_tap(image: Tensor, window: Window, rows: slice, wo: int) -> Iterator[tuple[int, int, Tensor]]:
    """What one tap after the other of some output rows sees, as views: [C, H, W] -> (i, j, [C, rows, Wo])."""
    first = rows.start * window.stride[0]
    return taps(image[:, first:], window, rows.stop - rows.start, wo)


def _scatter(values: Tensor, image: Tensor, window: Window, rows: slice) -> None:
    """Add what each tap holds to the pixel it came from, the transpose of `_taps`.

    One tap at a time: the taps of one view overlap, and adding to overlapping memory is not defined.
    """
    for i, j, view in _each_tap(image, window, rows, values.shape[-1]):
        view += values[:, i, j]


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """[O, C/groups, kh, kw] -> [groups, O/groups, C/groups * kh * kw], no channels included."""
    return weight.reshape(groups, weight.shape[0] // groups, math.prod(weight.shape[1:]))


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
        return _bands(self.size[0], 4 * channels * self.size[1])

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


# --- the transposed operator's pairs of pixels, from either side -------------------------------------------


def _seen_from_input(kernel: Tensor, window: Window, height: int, width: int) -> Tensor:
    """K of each pair as the convolution from the output back to the input indexes it: [B, 1, kh, kw, H, W].

    The input pixel y is seen by the output pixel y * stride - padding + t * dilation, under the tap opposite of t.
    Zero where that lies outside the output.
    """
    b, _, kh, kw, ho, wo = kernel.shape
    seen = kernel.new_zeros(b, 1, kh, kw, height, width)
    for (i, j, *inputs), (k, m, *outputs) in _matches(window, (height, width), (ho, wo)):
        seen[:, :, i, j, inputs[0], inputs[1]] = kernel[:, :, k, m, outputs[0], outputs[1]]
    return seen


def _seen_from_output(seen: Tensor, window: Window, ho: int, wo: int) -> Tensor:
    """The transpose of `_seen_from_input`: [B, 1, kh, kw, Ho, Wo]."""
    b, _, kh, kw, height, width = seen.shape
    kernel = seen.new_zeros(b, 1, kh, kw, ho, wo)
    for (i, j, *inputs), (k, m, *outputs) in _matches(window, (height, width), (ho, wo)):
        kernel[:, :, k, m, outputs[0], outputs[1]] = seen[:, :, i, j, inputs[0], inputs[1]]
    return kernel


Side = tuple[int, int, slice, slice]


def _matches(window: Window, inputs: Pair, outputs: Pair) -> Iterator[tuple[Side, Side]]:
    """For each tap, and the tap opposite: which input pixels meet which output pixels, as (i, j, rows, columns)."""
    kh, kw = window.kernel_size
    rows = [_match(window, 0, i, inputs[0], outputs[0]) for i in range(kh)]
    columns = [_match(window, 1, j, inputs[1], outputs[1]) for j in range(kw)]
    for i in range(kh):
        for j in range(kw):
            yield (i, j, rows[i][0], columns[j][0]), (kh - 1 - i, kw - 1 - j, rows[i][1], columns[j][1])


def _match(window: Window, axis: int, tap: int, inputs: int, outputs: int) -> tuple[slice, slice]:
    """Along one axis, the y of 0 <= y < inputs whose y * stride + shift is an output pixel, and those pixels."""
    step, shift = window.stride[axis], tap * window.dilation[axis] - window.padding[axis]
    first = max(0, -(shift // step))
    last = max(first - 1, min(inputs - 1, (outputs - 1 - shift) // step))
    start = first * step + shift
    return slice(first, last + 1), slice(start, start + (last - first) * step + 1 if last >= first else start, step)
