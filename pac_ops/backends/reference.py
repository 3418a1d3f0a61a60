"""The oracle: every operator in plain, obvious PyTorch.

Written from the equations, to be read; slow and hungry (it stores all k*k taps of everything). Every
other backend is held against it in float64, and it serves any device or dtype that nothing else does.
No fast path imports this module. Exported files have most of its forwards (`standard`), with any size open.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from pac_ops.backends.signatures import Gradients, Needs
from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Enlargement
from pac_ops.geometry import Window, all_taps, gather, pad, spread, taps, turned


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """||f_i - f_j||^2 between the window's centre and each tap: [B, G, H, W] -> [B, 1, kh, kw, Ho, Wo]."""
    padded, size = pad(guide.to(accumulate_dtype(guide.dtype)), window), window.output_size(*guide.shape[2:])
    f_j = [view for _, _, view in taps(padded, window, *size)]
    f_i = f_j[len(f_j) // 2]
    return _square_lengths([f_i - f for f in f_j], window.kernel_size)


def gaussian_kernel2d(guide: Tensor, window: Window) -> Tensor:
    """exp(-1/2 ||f_i - f_j||^2): [B, G, H, W] -> [B, 1, kh, kw, Ho, Wo]."""
    return torch.exp(-0.5 * squared_distance2d(guide, window))


def squared_distance2d_backward(grad: Tensor, guide: Tensor, window: Window) -> Tensor:
    """Gradient of `squared_distance2d` with respect to the guide: [B, G, H, W]."""
    f_j = all_taps(guide.to(accumulate_dtype(guide.dtype)), window)
    kh, kw = window.kernel_size
    f_i = f_j[:, :, kh // 2, kw // 2, None, None]
    pull = 2 * grad * (f_i - f_j)  # d/df_i of each tap's distance; d/df_j is its negative
    per_tap = -pull
    per_tap[:, :, kh // 2, kw // 2] += pull.sum(dim=(2, 3))
    return _scatter(per_tap, window, guide.shape[2], guide.shape[3]).to(guide.dtype)


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """v'_i = sum_j K_ij W[p_i - p_j] v_j + b: [B, C, H, W] -> [B, O, Ho, Wo]."""
    wide = accumulate_dtype(input.dtype)
    adapted = all_taps(input.to(wide), window) * kernel.to(wide)  # [B, C, kh, kw, Ho, Wo]
    adapted = adapted.unflatten(1, (groups, -1))  # [B, g, C/g, kh, kw, Ho, Wo]
    filters = weight.to(wide).unflatten(0, (groups, -1))  # [g, O/g, C/g, kh, kw]
    out = torch.einsum("bgcijyx,gocij->bgoyx", adapted, filters).flatten(1, 2)
    if bias is not None:
        out = out + bias.to(wide)[:, None, None]
    return out.to(input.dtype)


def pacconv2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """Gradients of `pacconv2d` with respect to input, kernel and weight; None where `needs` is False."""
    wide = accumulate_dtype(input.dtype)
    v_j = all_taps(input.to(wide), window)  # [B, C, kh, kw, Ho, Wo]
    k_ij = kernel.to(wide)
    g_i = grad.to(wide).unflatten(1, (groups, -1))  # [B, g, O/g, Ho, Wo]
    filters = weight.to(wide).unflatten(0, (groups, -1))
    grad_input = grad_kernel = grad_weight = None
    if needs[0] or needs[1]:
        product = torch.einsum("bgoyx,gocij->bgcijyx", g_i, filters).flatten(1, 2)  # dL/d(K v), per tap
        if needs[0]:
            grad_input = _scatter(product * k_ij, window, input.shape[2], input.shape[3]).to(input.dtype)
        if needs[1]:
            grad_kernel = (product * v_j).sum(dim=1, keepdim=True).to(kernel.dtype)
    if needs[2]:
        adapted = (v_j * k_ij).unflatten(1, (groups, -1))
        grad_weight = torch.einsum("bgoyx,bgcijyx->gocij", g_i, adapted).flatten(0, 1).to(weight.dtype)
    return grad_input, grad_kernel, grad_weight


def pacconv_transpose2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """Insert stride - 1 zeros, pad, apply PAC with stride 1; the output's size is K's.

    [B, C, H, W] -> [B, O, Ho, Wo], with the weight [C, O/groups, kh, kw] of `torch.nn.ConvTranspose2d`.
    """
    spaced = spread(input, window, *kernel.shape[-2:])
    return pacconv2d(spaced, kernel, turned(weight, groups), bias, window.stepping(), groups)


def pacconv_transpose2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """Gradients of `pacconv_transpose2d` with respect to input, kernel and weight; None where not needed."""
    spaced, filters = spread(input, window, *kernel.shape[-2:]), turned(weight, groups)
    grad_spaced, grad_kernel, grad_turned = pacconv2d_backward(
        grad, spaced, kernel, filters, window.stepping(), groups, needs
    )
    grad_input = None if grad_spaced is None else gather(grad_spaced, window, input.shape[2], input.shape[3])
    return grad_input, grad_kernel, None if grad_turned is None else turned(grad_turned, groups)


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """v'_i = sum_j K_ij v_j: [B, C, H, W] -> [B, C, Ho, Wo]."""
    wide = accumulate_dtype(input.dtype)
    return (all_taps(input.to(wide), window) * kernel.to(wide)).sum(dim=(2, 3)).to(input.dtype)


def pacpool2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, window: Window, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `pacpool2d` with respect to input and kernel; None where `needs` is False."""
    wide = accumulate_dtype(input.dtype)
    g_i = grad.to(wide)[:, :, None, None]
    grad_input = grad_kernel = None
    if needs[0]:
        per_tap = g_i * kernel.to(wide)
        grad_input = _scatter(per_tap, window, input.shape[2], input.shape[3]).to(input.dtype)
    if needs[1]:
        grad_kernel = g_i * all_taps(input.to(wide), window)
        if kernel.shape[1] == 1:
            grad_kernel = grad_kernel.sum(dim=1, keepdim=True)
        grad_kernel = grad_kernel.to(kernel.dtype)
    return grad_input, grad_kernel


def _scatter(per_tap: Tensor, window: Window, height: int, width: int) -> Tensor:
    """Add each tap's values to the pixels it reads, the transpose of `all_taps`: -> [B, C, H, W]."""
    (py, px), (ho, wo) = window.padding, per_tap.shape[-2:]
    padded = per_tap.new_zeros(*per_tap.shape[:2], height + 2 * py, width + 2 * px)
    for i, j, view in taps(padded, window, ho, wo):
        view += per_tap[:, :, i, j]
    return padded[:, :, py : py + height, px : px + width].contiguous()


def resize_distance2d(guide: Tensor, coarse: Tensor, where: Enlargement) -> Tensor:
    """||f_i - g_j||^2 between each fine pixel and its coarse neighbours.

    [B, G, Ho, Wo], [B, G, h, w] -> [B, 1, n, n, Ho, Wo].
    """
    wide = accumulate_dtype(guide.dtype)
    held = _neighbours(coarse.to(wide), where, guide.shape[2], guide.shape[3])
    return _square_lengths([guide.to(wide) - g_j for g_j in held], (where.footprint, where.footprint))


def resize_distance2d_backward(
    grad: Tensor, guide: Tensor, coarse: Tensor, where: Enlargement
) -> tuple[Tensor, Tensor]:
    """Gradients of `resize_distance2d` with respect to both guides."""
    wide = accumulate_dtype(guide.dtype)
    g_j = _stacked(_neighbours(coarse.to(wide), where, guide.shape[2], guide.shape[3]), where)
    pull = 2 * grad * (guide.to(wide)[:, :, None, None] - g_j)
    to_coarse = _to_neighbours(-pull, where, coarse)
    return pull.sum(dim=(2, 3)).to(guide.dtype), to_coarse.to(coarse.dtype)


def pacresize2d(input: Tensor, kernel: Tensor, where: Enlargement) -> Tensor:
    """v'_i = sum_j K_ij v_j over the coarse neighbours: [B, C, h, w], [B, 1, n, n, Ho, Wo] -> [B, C, Ho, Wo]."""
    wide = accumulate_dtype(input.dtype)
    held = _neighbours(input.to(wide), where, kernel.shape[4], kernel.shape[5])
    weighed = [v_j * k for v_j, k in zip(held, kernel.to(wide).flatten(2, 3).unbind(dim=2), strict=True)]
    return reduce(torch.add, weighed).to(input.dtype)


def pacresize2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, where: Enlargement, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `pacresize2d` with respect to input and kernel; None where `needs` is False."""
    wide = accumulate_dtype(input.dtype)
    g_i = grad.to(wide)[:, :, None, None]
    grad_input = grad_kernel = None
    if needs[0]:
        grad_input = _to_neighbours(g_i * kernel.to(wide), where, input).to(input.dtype)
    if needs[1]:
        v_j = _stacked(_neighbours(input.to(wide), where, kernel.shape[4], kernel.shape[5]), where)
        grad_kernel = (g_i * v_j).sum(dim=1, keepdim=True).to(kernel.dtype)
    return grad_input, grad_kernel


def _square_lengths(per_tap: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """One [B, G, H, W] a tap -> [B, 1, kh, kw, H, W]. No `square`: ONNX exporters decompose whole graphs for it."""
    lengths: Tensor = torch.stack([(x * x).sum(dim=1, keepdim=True) for x in per_tap], dim=2).unflatten(2, size)
    return lengths


def _neighbours(x: Tensor, where: Enlargement, ho: int, wo: int) -> list[Tensor]:
    """For each neighbour of a footprint, its values at every fine pixel: [B, C, h, w] -> [B, C, Ho, Wo]."""
    rows, columns = where.neighbours((x.shape[2], x.shape[3]), (ho, wo), x.device)
    down = [x.index_select(2, near) for near in rows.unbind(dim=1)]
    across = columns.unbind(dim=1)
    return [y.index_select(3, near) for y in down for near in across]


def _stacked(held: Sequence[Tensor], where: Enlargement) -> Tensor:
    """One [B, C, Ho, Wo] a neighbour -> [B, C, n, n, Ho, Wo]."""
    together: Tensor = torch.stack(list(held), dim=2).unflatten(2, (where.footprint, where.footprint))
    return together


def _to_neighbours(per_tap: Tensor, where: Enlargement, like: Tensor) -> Tensor:
    """Add each neighbour's values to its coarse pixel, the transpose of `_neighbours`: -> [B, C, h, w]."""
    height, width = like.shape[2:]
    rows, columns = where.neighbours((height, width), (per_tap.shape[4], per_tap.shape[5]), like.device)
    place = rows.T[:, None, :, None] * width + columns.T[None, :, None, :]  # [n, n, Ho, Wo]
    flat = per_tap.new_zeros(*per_tap.shape[:2], height * width)
    return flat.index_add(2, place.flatten(), per_tap.flatten(2)).view(*like.shape)
