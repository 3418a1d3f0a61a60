"""The two convolutions: each block of rows is gathered under all taps, and one matrix product consumes it."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pac_ops.backends.blocked.rows import add_to_taps, all_tap_views, blocks, crop
from pac_ops.backends.signatures import Gradients, Needs
from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Pair, Window, pad


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
    for n, rows in blocks(input.shape[1], window, out):
        seen = all_tap_views(padded[n], window, rows, wo)  # [C, kh, kw, rows, Wo], a view
        torch.mul(seen, kernel[n, :, :, :, rows], out=adapted.resize_(seen.shape))
        pixels = seen.shape[3] * wo
        columns = adapted.view(groups, filters.shape[2], pixels)
        block = out[n, :, rows].view(groups, filters.shape[1], pixels)
        torch.baddbmm(start, filters, columns, beta=0 if bias is None else 1, out=block)
    return out.to(input.dtype)


def pacconv2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
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
    for n, rows in blocks(c, window, g_out):
        k_block = k_ij[n, :, :, :, rows]  # [1, kh, kw, rows, Wo]
        pixels = k_block.shape[3] * k_block.shape[4]
        g_block = g_out[n, :, rows].reshape(groups, filters.shape[1], pixels)
        buffer.resize_(c, *k_block.shape[1:])
        columns = buffer.view(groups, filters.shape[2], pixels)
        seen = buffer if padded is None else all_tap_views(padded[n], window, rows, k_block.shape[-1])
        if grad_filters is not None:
            torch.mul(seen, k_block, out=buffer)
            grad_filters.baddbmm_(g_block, columns.mT)
        if grad_padded is None and grad_kernel is None:
            continue
        torch.bmm(filters.mT, g_block, out=columns)  # dL/d(K v), of which both other gradients are made
        if grad_kernel is not None:
            grad_kernel[n, 0, :, :, rows] = (buffer * seen).sum(dim=0)
        if grad_padded is not None:
            add_to_taps(buffer.mul_(k_block), grad_padded[n], window, rows)
    return (
        None if grad_padded is None else crop(grad_padded, window).to(input.dtype),
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
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
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


def _by_group(weight: Tensor, groups: int) -> Tensor:
    """[O, C/groups, kh, kw] -> [groups, O/groups, C/groups * kh * kw], no channels included."""
    return weight.reshape(groups, weight.shape[0] // groups, math.prod(weight.shape[1:]))


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
