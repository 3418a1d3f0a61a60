"""Guided enlargement: sums over a fine pixel's coarse neighbours, and, back, over the fine pixels of a coarse one.

The neighbours come as tables, [Ho, n] rows and [Wo, n] columns. Along an axis the fine pixels that have a coarse one
as their neighbour under one tap lie side by side, so the way back is a table of where they begin and end: every
gradient is a sum in a fixed order.
"""

# Triton is untyped, and its constants are written in capitals.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pac_ops.backends.triton.launch import cdiv, elementwise_tiles, index_type, launch
from pac_ops.enlargement import Enlargement


@triton.jit
def _pixels(tile, batch, height, width, BLOCK: tl.constexpr, INDEX):
    """Image, row and column of each pixel of a tile, and whether it exists."""
    pixel = tl.full((BLOCK,), BLOCK, INDEX) * tile + tl.arange(0, BLOCK)
    image = pixel // (height * width)
    return image, pixel % (height * width) // width, pixel % width, image < batch


@triton.jit
def _from_coarse_kernel(
    coarse,  # [B, C, h, w]
    kernel,  # [B, 1, n, n, H, W]: K, or the distances' gradient where PULL
    fine,  # [B, C, H, W], where PULL
    rows,  # [H, n]
    columns,  # [W, n]
    out,  # [B, C, H, W]
    batch, channels, height, width, fine_height, fine_width,
    TAPS: tl.constexpr, PULL: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Of every fine pixel, sum_taps K coarse; or sum_taps 2 grad (fine - coarse), the pull on the fine guide."""
    parts = tl.cdiv(channels, BLOCK_O)
    image, y, x, exists = _pixels(tl.program_id(0) // parts, batch, fine_height, fine_width, BLOCK_P, INDEX)
    c = tl.program_id(0) % parts * BLOCK_O + tl.arange(0, BLOCK_O)
    counts = exists[None, :] & (c < channels)[:, None]
    plane = image[None, :] * channels + c[:, None]
    at = (plane * fine_height + y[None, :]) * fine_width + x[None, :]
    total = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    if PULL:
        f_i = tl.load(fine + at, mask=counts, other=0.0).to(tl.float32)
    for tap in range(TAPS * TAPS):
        i = tl.load(rows + y * TAPS + tap // TAPS, mask=exists, other=0)
        j = tl.load(columns + x * TAPS + tap % TAPS, mask=exists, other=0)
        at_kernel = ((image * TAPS * TAPS + tap) * fine_height + y) * fine_width + x
        k = tl.load(kernel + at_kernel, mask=exists, other=0.0).to(tl.float32)
        v = tl.load(coarse + (plane * height + i[None, :]) * width + j[None, :], mask=counts, other=0.0)
        if PULL:
            total += 2 * k[None, :] * (f_i - v.to(tl.float32))
        else:
            total += k[None, :] * v.to(tl.float32)
    tl.store(out + at, total, mask=counts)


@triton.jit
def _over_channels_kernel(
    coarse,  # [B, C, h, w]
    fine,  # [B, C, H, W]
    rows,  # [H, n]
    columns,  # [W, n]
    out,  # [B, 1, n, n, H, W]
    batch, channels, height, width, fine_height, fine_width,
    TAPS: tl.constexpr, DISTANCE: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Of every fine pixel and tap, sum_channels (fine - coarse)^2; or of fine * coarse, the gradient of K."""
    tile = tl.program_id(0) // (TAPS * TAPS)
    tap = tl.program_id(0) % (TAPS * TAPS)
    image, y, x, exists = _pixels(tile, batch, fine_height, fine_width, BLOCK_P, INDEX)
    i = tl.load(rows + y * TAPS + tap // TAPS, mask=exists, other=0)
    j = tl.load(columns + x * TAPS + tap % TAPS, mask=exists, other=0)
    total = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    for first in range(0, channels, BLOCK_O):
        c = first + tl.arange(0, BLOCK_O)
        counts = exists[None, :] & (c < channels)[:, None]
        plane = image[None, :] * channels + c[:, None]
        f = tl.load(fine + (plane * fine_height + y[None, :]) * fine_width + x[None, :], mask=counts, other=0.0)
        v = tl.load(coarse + (plane * height + i[None, :]) * width + j[None, :], mask=counts, other=0.0)
        if DISTANCE:
            away = f.to(tl.float32) - v.to(tl.float32)
            total += away * away
        else:
            total += f.to(tl.float32) * v.to(tl.float32)
    at = ((image * TAPS * TAPS + tap) * fine_height + y) * fine_width + x
    tl.store(out + at, tl.sum(total, axis=0), mask=exists)


@triton.jit
def _to_coarse_kernel(
    fine,  # [B, C, H, W]
    kernel,  # [B, 1, n, n, H, W]: K, or the distances' gradient where PULL
    coarse,  # [B, C, h, w], where PULL
    rows,  # [n, h + 1]: the first fine row whose neighbour under a tap is this coarse row or a later one
    columns,  # [n, w + 1], likewise
    out,  # [B, C, h, w]
    batch, channels, height, width, fine_height, fine_width,
    TAPS: tl.constexpr, PULL: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """Of a coarse pixel, the sum over taps and the fine pixels that see it of K fine, or 2 grad (coarse - fine)."""
    parts = tl.cdiv(channels, BLOCK_O)
    image, y, x, exists = _pixels(tl.program_id(0) // parts, batch, height, width, BLOCK_P, INDEX)
    c = tl.program_id(0) % parts * BLOCK_O + tl.arange(0, BLOCK_O)
    has_channel = (c < channels)[:, None]
    plane = image[None, :] * channels + c[:, None]
    at = (plane * height + y[None, :]) * width + x[None, :]
    total = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    if PULL:
        g_j = tl.load(coarse + at, mask=exists[None, :] & has_channel, other=0.0).to(tl.float32)
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
            at_fine = (plane * fine_height + seen_y[None, :]) * fine_width + seen_x[None, :]
            f = tl.load(fine + at_fine, mask=sees[None, :] & has_channel, other=0.0).to(tl.float32)
            if PULL:
                total += tl.where(sees[None, :], 2 * k[None, :] * (g_j - f), 0.0)
            else:
                total += k[None, :] * f
    tl.store(out + at, total, mask=exists[None, :] & has_channel)


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
    out = (coarse if fine is None else fine).new_empty(*coarse.shape[:2], *kernel.shape[4:])
    coarse, kernel = coarse.contiguous(), kernel.contiguous()
    fine = None if fine is None else fine.contiguous()
    rows, columns = where.neighbours((coarse.shape[2], coarse.shape[3]), (out.shape[2], out.shape[3]), out.device)
    arguments = {"coarse": coarse, "kernel": kernel, "fine": fine, "rows": rows, "columns": columns, "out": out}
    _launch(_from_coarse_kernel, out, coarse, out, where, arguments, PULL=fine is not None)
    return out


def _over_channels(fine: Tensor, coarse: Tensor, where: Enlargement, *, distance: bool) -> Tensor:
    n = where.footprint
    out = torch.empty((fine.shape[0], 1, n, n, *fine.shape[2:]), dtype=torch.float32, device=fine.device)
    fine, coarse = fine.contiguous(), coarse.contiguous()
    rows, columns = where.neighbours((coarse.shape[2], coarse.shape[3]), (fine.shape[2], fine.shape[3]), fine.device)
    arguments = {"coarse": coarse, "fine": fine, "rows": rows, "columns": columns, "out": out}
    _launch(_over_channels_kernel, fine, coarse, out, where, arguments, programs=n * n, DISTANCE=distance)
    return out


def _to_coarse(fine: Tensor, kernel: Tensor, where: Enlargement, coarse: Tensor, *, pull: bool) -> Tensor:
    """The kernel of that name; `coarse` gives the shape, and with `pull` is pulled at."""
    out = coarse.new_empty(coarse.shape)
    fine, kernel, coarse = fine.contiguous(), kernel.contiguous(), coarse.contiguous()
    size = (coarse.shape[2], coarse.shape[3])
    neighbours = where.neighbours(size, (fine.shape[2], fine.shape[3]), fine.device)
    rows, columns = (_begins(seen, pixels) for seen, pixels in zip(neighbours, size, strict=True))
    arguments = {"fine": fine, "kernel": kernel, "coarse": coarse, "rows": rows, "columns": columns, "out": out}
    _launch(_to_coarse_kernel, fine, coarse, out, where, arguments, PULL=pull)
    return out


def _begins(seen: Tensor, pixels: int) -> Tensor:
    """[n, pixels + 1]: where the fine pixels begin that see each coarse one under each tap; and the end."""
    each = torch.arange(pixels + 1, device=seen.device).expand(seen.shape[1], -1)
    return torch.searchsorted(seen.T.contiguous(), each.contiguous())


def _launch(
    kernel: Any,
    fine: Tensor,
    coarse: Tensor,
    out: Tensor,
    where: Enlargement,
    arguments: dict[str, Any],
    programs: int | None = None,
    **constants: Any,
) -> None:
    """Run a kernel; of each tile of pixels there are so many programs, by default one for each block of channels."""
    batch, channels = coarse.shape[:2]
    meta = elementwise_tiles(fine, channels)
    height, width = (coarse if out.shape == coarse.shape else fine).shape[2:]
    pixels = batch * height * width
    tiles = cdiv(pixels, meta["BLOCK_P"])
    sizes = {
        "batch": batch,
        "channels": channels,
        "height": coarse.shape[2],
        "width": coarse.shape[3],
        "fine_height": fine.shape[2],
        "fine_width": fine.shape[3],
        "TAPS": where.footprint,
        "INDEX": index_type(*(x for x in arguments.values() if isinstance(x, Tensor))),
    }
    grid = (tiles * (cdiv(channels, meta["BLOCK_O"]) if programs is None else programs),)
    launch(kernel, grid, out, arguments | sizes | constants, meta)
