"""Guided enlargement: sums over a fine pixel's coarse neighbours, and, back, over the fine pixels of a coarse one.

The neighbours come as tables, [Ho, n] rows and [Wo, n] columns. Along an axis the fine pixels that have a coarse one
as their neighbour under one tap lie side by side, so the way back is a table of where they begin and end: every
gradient is a sum in a fixed order.
"""

# Triton is untyped, and its constants are written in capitals.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

from pac_ops.backends.triton.arguments import strides
from pac_ops.backends.triton.indexing import load_channels, store_channels
from pac_ops.backends.triton.launch import planned_with_tensors
from pac_ops.backends.triton.layout import Key, Layout, layout
from pac_ops.backends.triton.neighbours import (
    Planned,
    launch_over,
    pixels_of_tile,
    size_of,
    tables_of,
)
from pac_ops.enlargement import Enlargement


@triton.jit
def _from_coarse_kernel(
    coarse,  # [B, C, h, w]
    kernel,  # [B, 1, n, n, H, W]: K, or the distances' gradient where PULL
    fine,  # [B, C, H, W], where PULL
    out,  # [B, C, H, W]
    rows,  # [H, n]
    columns,  # [W, n]
    coarse_stride_b, coarse_stride_c, coarse_stride_y, coarse_stride_x,
    fine_stride_b, fine_stride_c, fine_stride_y, fine_stride_x,
    out_stride_b, out_stride_c, out_stride_y, out_stride_x,
    batch, channels, height, width, fine_height, fine_width,
    TAPS: tl.constexpr, PULL: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Of every fine pixel, sum_taps K coarse; or sum_taps 2 grad (fine - coarse), the pull on the fine guide."""
    parts = tl.cdiv(channels, BLOCK_O)
    image, y, x, exists = pixels_of_tile(tl.program_id(0) // parts, batch, fine_height, fine_width, BLOCK_P, INDEX)
    c = (tl.program_id(0) % parts * BLOCK_O + tl.arange(0, BLOCK_O)).to(INDEX)
    at_coarse = image * coarse_stride_b
    total = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    if PULL:
        at_fine = image * fine_stride_b + y * fine_stride_y + x * fine_stride_x
        f_i = load_channels(fine, at_fine, c * fine_stride_c, exists, c < channels).to(tl.float32)
    for tap in range(TAPS * TAPS):
        i = tl.load(rows + y * TAPS + tap // TAPS, mask=exists, other=0)
        j = tl.load(columns + x * TAPS + tap % TAPS, mask=exists, other=0)
        at_kernel = ((image * TAPS * TAPS + tap) * fine_height + y) * fine_width + x
        k = tl.load(kernel + at_kernel, mask=exists, other=0.0).to(tl.float32)
        at = at_coarse + i * coarse_stride_y + j * coarse_stride_x
        v = load_channels(coarse, at, c * coarse_stride_c, exists, c < channels).to(tl.float32)
        if PULL:
            total += 2 * k[None, :] * (f_i - v)
        else:
            total += k[None, :] * v
    at = image * out_stride_b + y * out_stride_y + x * out_stride_x
    store_channels(out, at, c * out_stride_c, total, exists, c < channels)


@triton.jit
def _over_channels_kernel(
    coarse,  # [B, C, h, w]
    fine,  # [B, C, H, W]
    out,  # [B, 1, n, n, H, W]
    rows,  # [H, n]
    columns,  # [W, n]
    coarse_stride_b, coarse_stride_c, coarse_stride_y, coarse_stride_x,
    fine_stride_b, fine_stride_c, fine_stride_y, fine_stride_x,
    batch, channels, height, width, fine_height, fine_width,
    TAPS: tl.constexpr, DISTANCE: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Of every fine pixel and tap, sum_channels (fine - coarse)^2; or of fine * coarse, the gradient of K."""
    tile = tl.program_id(0) // (TAPS * TAPS)
    tap = tl.program_id(0) % (TAPS * TAPS)
    image, y, x, exists = pixels_of_tile(tile, batch, fine_height, fine_width, BLOCK_P, INDEX)
    i = tl.load(rows + y * TAPS + tap // TAPS, mask=exists, other=0)
    j = tl.load(columns + x * TAPS + tap % TAPS, mask=exists, other=0)
    at_fine = image * fine_stride_b + y * fine_stride_y + x * fine_stride_x
    at_coarse = image * coarse_stride_b + i * coarse_stride_y + j * coarse_stride_x
    total = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    for first in range(0, channels, BLOCK_O):
        c = (first + tl.arange(0, BLOCK_O)).to(INDEX)
        f = load_channels(fine, at_fine, c * fine_stride_c, exists, c < channels).to(tl.float32)
        v = load_channels(coarse, at_coarse, c * coarse_stride_c, exists, c < channels).to(tl.float32)
        if DISTANCE:
            total += (f - v) * (f - v)
        else:
            total += f * v
    at = ((image * TAPS * TAPS + tap) * fine_height + y) * fine_width + x
    tl.store(out + at, tl.sum(total, axis=0), mask=exists)


@triton.jit
def _to_coarse_kernel(
    fine,  # [B, C, H, W]
    kernel,  # [B, 1, n, n, H, W]: K, or the distances' gradient where PULL
    coarse,  # [B, C, h, w], where PULL
    out,  # [B, C, h, w]
    rows,  # [n, h + 1]: the first fine row whose neighbour under a tap is this coarse row or a later one
    columns,  # [n, w + 1], likewise
    fine_stride_b, fine_stride_c, fine_stride_y, fine_stride_x,
    coarse_stride_b, coarse_stride_c, coarse_stride_y, coarse_stride_x,
    out_stride_b, out_stride_c, out_stride_y, out_stride_x,
    batch, channels, height, width, fine_height, fine_width,
    TAPS: tl.constexpr, PULL: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Of a coarse pixel, the sum over taps and the fine pixels that see it of K fine, or 2 grad (coarse - fine)."""
    parts = tl.cdiv(channels, BLOCK_O)
    image, y, x, exists = pixels_of_tile(tl.program_id(0) // parts, batch, height, width, BLOCK_P, INDEX)
    c = (tl.program_id(0) % parts * BLOCK_O + tl.arange(0, BLOCK_O)).to(INDEX)
    total = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    if PULL:
        at_coarse = image * coarse_stride_b + y * coarse_stride_y + x * coarse_stride_x
        g_j = load_channels(coarse, at_coarse, c * coarse_stride_c, exists, c < channels).to(tl.float32)
    for tap in range(TAPS * TAPS):
        from_row = rows + tap // TAPS * (height + 1) + y
        from_column = columns + tap % TAPS * (width + 1) + x
        top = tl.load(from_row, mask=exists, other=0)
        left = tl.load(from_column, mask=exists, other=0)
        down = tl.load(from_row + 1, mask=exists, other=0) - top
        across = tl.load(from_column + 1, mask=exists, other=0) - left
        most = tl.max(across, axis=0)
        for step in range(tl.max(down, axis=0) * most):
            seen_y = top + step // most
            seen_x = left + step % most
            sees = exists & (step // most < down) & (step % most < across)
            at_kernel = ((image * TAPS * TAPS + tap) * fine_height + seen_y) * fine_width + seen_x
            k = tl.load(kernel + at_kernel, mask=sees, other=0.0).to(tl.float32)
            at = image * fine_stride_b + seen_y * fine_stride_y + seen_x * fine_stride_x
            f = load_channels(fine, at, c * fine_stride_c, sees, c < channels).to(tl.float32)
            if PULL:
                total += tl.where(sees[None, :], 2 * k[None, :] * (g_j - f), 0.0)
            else:
                total += k[None, :] * f
    at = image * out_stride_b + y * out_stride_y + x * out_stride_x
    store_channels(out, at, c * out_stride_c, total, exists, c < channels)


def resize_distance2d(guide: Tensor, coarse: Tensor, where: Enlargement) -> Tensor:
    """See `reference.resize_distance2d`."""
    return _over_channels(guide, coarse, where, distance=True)


def resize_distance2d_backward(
    grad: Tensor, guide: Tensor, coarse: Tensor, where: Enlargement
) -> tuple[Tensor, Tensor]:
    """See `reference.resize_distance2d_backward`."""
    return _from_coarse(coarse, grad, where, guide), _to_coarse(guide, grad, where, coarse, pull=True)


def pacresize2d(input: Tensor, kernel: Tensor, where: Enlargement) -> Tensor:
    """See `reference.pacresize2d`."""
    return _from_coarse(input, kernel, where, None)


def pacresize2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, where: Enlargement, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacresize2d_backward`."""
    grad_input = _to_coarse(grad, kernel, where, input, pull=False) if needs[0] else None
    grad_kernel = _over_channels(grad, input, where, distance=False).to(kernel.dtype) if needs[1] else None
    return grad_input, grad_kernel


def _from_coarse(coarse: Tensor, kernel: Tensor, where: Enlargement, fine: Tensor | None) -> Tensor:
    """The kernel of that name; with `fine`, the pull on it."""
    kernel = kernel.contiguous()
    of_fine = None if fine is None else layout(fine)
    plan = planned_with_tensors(
        _from_coarse_plan, coarse.device, layout(coarse), layout(kernel), of_fine, where.hashable
    )
    out = plan.out.empty(coarse.device)
    plan.launch(coarse, kernel, fine, out)
    return out


def _from_coarse_plan(
    device: torch.device, of_coarse: Key, of_kernel: Key, of_fine: Key | None, where: Enlargement
) -> Planned:
    coarse, kernel = Layout(*of_coarse), Layout(*of_kernel)
    fine = None if of_fine is None else Layout(*of_fine)
    like, size = coarse if fine is None else fine, (kernel.shape[4], kernel.shape[5])
    out = Layout.dense((*coarse.shape[:2], *size), like.dtype, last=like.last)
    arguments = {**strides("fine", fine), **strides("out", out), "PULL": fine is not None}
    arguments |= tables_of(where.neighbours(size_of(coarse), size, device))
    indexed = (coarse, kernel, out, *(() if fine is None else (fine,)))
    launch = launch_over(_from_coarse_kernel, coarse, size, size, where, arguments, out, indexed, device)
    return Planned(launch, out)


def _over_channels(fine: Tensor, coarse: Tensor, where: Enlargement, *, distance: bool) -> Tensor:
    """The kernel of that name."""
    plan = planned_with_tensors(
        _over_channels_plan, fine.device, layout(fine), layout(coarse), where.hashable, distance
    )
    out = plan.out.empty(fine.device)
    plan.launch(coarse, fine, out)
    return out


def _over_channels_plan(
    device: torch.device, of_fine: Key, of_coarse: Key, where: Enlargement, distance: bool
) -> Planned:
    coarse, fine, n = Layout(*of_coarse), Layout(*of_fine), where.footprint
    out = Layout.dense((fine.shape[0], 1, n, n, *size_of(fine)), torch.float32)
    arguments = {**strides("fine", fine), "DISTANCE": distance}
    arguments |= tables_of(where.neighbours(size_of(coarse), size_of(fine), device))
    launch = launch_over(
        _over_channels_kernel,
        coarse,
        size_of(fine),
        size_of(fine),
        where,
        arguments,
        fine,
        (coarse, fine, out),
        device,
        programs=n * n,
    )
    return Planned(launch, out)


def _to_coarse(fine: Tensor, kernel: Tensor, where: Enlargement, coarse: Tensor, *, pull: bool) -> Tensor:
    """The kernel of that name; `coarse` gives the shape, and with `pull` is pulled at."""
    kernel = kernel.contiguous()
    layouts = (layout(fine), layout(kernel), layout(coarse))
    plan = planned_with_tensors(_to_coarse_plan, fine.device, *layouts, where.hashable, pull)
    out = plan.out.empty(coarse.device)
    plan.launch(fine, kernel, coarse, out)
    return out


def _to_coarse_plan(
    device: torch.device, of_fine: Key, of_kernel: Key, of_coarse: Key, where: Enlargement, pull: bool
) -> Planned:
    fine, kernel, coarse = Layout(*of_fine), Layout(*of_kernel), Layout(*of_coarse)
    out = Layout.dense(coarse.shape, coarse.dtype, last=coarse.last)
    neighbours = where.neighbours(size_of(coarse), size_of(fine), device)
    begins = [_begins(seen, pixels) for seen, pixels in zip(neighbours, size_of(coarse), strict=True)]
    arguments = {**strides("fine", fine), **strides("out", out), "PULL": pull, **tables_of(begins)}
    indexed = (coarse, fine, kernel, out)
    launch = launch_over(
        _to_coarse_kernel, coarse, size_of(fine), size_of(coarse), where, arguments, out, indexed, device
    )
    return Planned(launch, out)


def _begins(seen: Tensor, pixels: int) -> Tensor:
    """[n, pixels + 1]: where the fine pixels begin that see each coarse one under each tap; and the end."""
    each = torch.arange(pixels + 1, device=seen.device).expand(seen.shape[1], -1)
    return torch.searchsorted(seen.T.contiguous(), each.contiguous())
