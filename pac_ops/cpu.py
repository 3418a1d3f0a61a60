"""The fast CPU path: the same arithmetic as `reference`, a cache-sized block of rows at a time.

Never stores k*k copies of anything image-sized. For a block of output rows, the k*k taps are strided views
of a small zero-padded tile; they are multiplied by K into one buffer that fits the cache and consumed by
one matrix product. The backward passes walk the same blocks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Window

# Elements of one block's buffer: 4 MiB in float32. Measured best from 2 to 8 MiB on 2 cores (benchmarks/).
BLOCK_ELEMENTS = 2**20


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d`."""
    guide = guide.to(accumulate_dtype(guide.dtype))
    b, g, h, w = guide.shape
    (kh, kw), _, _, _ = window
    ho, wo = window.output_size(h, w)
    out = guide.new_empty(b, 1, kh, kw, ho, wo)
    for n, first, rows, views in _blocks(guide, window, g):
        centre = views[:, kh // 2, kw // 2]
        for i in range(kh):
            for j in range(kw):
                if (i, j) == (kh // 2, kw // 2):
                    out[n, 0, i, j, first : first + rows] = 0
                    continue
                difference = views[:, i, j] - centre
                torch.sum(difference.square_(), dim=0, out=out[n, 0, i, j, first : first + rows])
    return out


def squared_distance2d_backward(grad: Tensor, guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d_backward`."""
    wide = guide.to(accumulate_dtype(guide.dtype))
    (kh, kw), _, _, _ = window
    out = torch.zeros_like(wide, memory_format=torch.contiguous_format)
    for n, first, rows, views in _blocks(wide, window, wide.shape[1]):
        centre = views[:, kh // 2, kw // 2]
        scatter = _Scatter(out[n], window, first, rows)
        pull_sum = torch.zeros_like(centre)
        for i in range(kh):
            for j in range(kw):
                if (i, j) == (kh // 2, kw // 2):
                    continue
                pull = (centre - views[:, i, j]).mul_(grad[n, 0, i, j, first : first + rows]).mul_(2)
                pull_sum += pull
                scatter.add(i, j, pull, alpha=-1)
        scatter.add(kh // 2, kw // 2, pull_sum)
        scatter.flush()
    return out.to(guide.dtype)


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv2d`."""
    wide = accumulate_dtype(input.dtype)
    source, kernel, filters = input.to(wide), kernel.to(wide), weight.to(wide)
    (kh, kw), _, _, _ = window
    b, c, h, w = source.shape
    o = weight.shape[0]
    ho, wo = window.output_size(h, w)
    out = source.new_empty(b, o, ho, wo)
    filters = filters.reshape(groups, o // groups, -1)  # [g, O/g, C/g*kh*kw]
    buffer = source.new_empty(0)
    for n, first, rows, views in _blocks(source, window, c * kh * kw):
        torch.mul(views, kernel[n, :, :, :, first : first + rows], out=buffer.resize_(views.shape))
        product = torch.bmm(filters, buffer.view(groups, -1, rows * wo)).view(o, rows, wo)
        if bias is not None:
            product += bias.to(wide)[:, None, None]
        out[n, :, first : first + rows] = product
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
    source, k_ij, filters, g_out = input.to(wide), kernel.to(wide), weight.to(wide), grad.to(wide)
    (kh, kw), _, _, _ = window
    b, c, h, w = source.shape
    o = weight.shape[0]
    ho, wo = window.output_size(h, w)
    filters = filters.reshape(groups, o // groups, -1)  # [g, O/g, C/g*kh*kw]
    needs_input, needs_kernel, needs_weight = needs
    grad_input = torch.zeros_like(source, memory_format=torch.contiguous_format) if needs_input else None
    grad_kernel = torch.empty_like(k_ij, memory_format=torch.contiguous_format) if needs_kernel else None
    grad_weight = torch.zeros_like(filters) if needs_weight else None
    buffer = source.new_empty(0)
    for n, first, rows, views in _blocks(source, window, c * kh * kw):
        k_block = k_ij[n, :, :, :, first : first + rows]  # [1, kh, kw, rows, Wo]
        g_block = g_out[n, :, first : first + rows].reshape(groups, o // groups, rows * wo)
        if grad_weight is not None:
            torch.mul(views, k_block, out=buffer.resize_(views.shape))
            grad_weight.baddbmm_(g_block, buffer.view(groups, -1, rows * wo).mT)
        if grad_input is None and grad_kernel is None:
            continue
        product = torch.bmm(filters.mT, g_block).view(c, kh, kw, rows, wo)  # dL/d(K v), per tap
        if grad_kernel is not None:
            grad_kernel[n, 0, :, :, first : first + rows] = (product * views).sum(dim=0)
        if grad_input is not None:
            product *= k_block
            scatter = _Scatter(grad_input[n], window, first, rows)
            for i in range(kh):
                for j in range(kw):
                    scatter.add(i, j, product[:, i, j])
            scatter.flush()
    return (
        None if grad_input is None else grad_input.to(input.dtype),
        None if grad_kernel is None else grad_kernel.to(kernel.dtype),
        None if grad_weight is None else grad_weight.view(weight.shape).to(weight.dtype),
    )


def _rows_per_block(window: Window, width_out: int, height_out: int, elements_per_pixel: int) -> int:
    return max(1, min(height_out, BLOCK_ELEMENTS // max(1, elements_per_pixel * width_out)))


def _blocks(x: Tensor, window: Window, elements_per_pixel: int) -> Iterator[tuple[int, int, int, Tensor]]:
    """Walk over (image n, first output row, rows, taps), the taps a strided view [C, kh, kw, rows, Wo].

    The view is of one reused buffer: it is valid until the next step.
    """
    (kh, kw), (sy, sx), (py, px), (dy, dx) = window
    b, c, h, w = x.shape
    ho, wo = window.output_size(h, w)
    rows = _rows_per_block(window, wo, ho, elements_per_pixel)
    tile = x.new_zeros(c, (rows - 1) * sy + (kh - 1) * dy + 1, w + 2 * px)
    channel, row, column = tile.stride()
    for n in range(b):
        for first in range(0, ho, rows):
            count = min(rows, ho - first)
            top = first * sy - py
            bottom = top + (count - 1) * sy + (kh - 1) * dy + 1
            inside_top, inside_bottom = min(max(top, 0), h), max(min(bottom, h), 0)
            if inside_top >= inside_bottom:
                tile.zero_()
            else:
                tile[:, : inside_top - top].zero_()
                tile[:, inside_bottom - top : bottom - top].zero_()
                tile[:, inside_top - top : inside_bottom - top, px : px + w] = x[n, :, inside_top:inside_bottom]
            views = tile.as_strided((c, kh, kw, count, wo), (channel, dy * row, dx * column, sy * row, sx * column))
            yield n, first, count, views


class _Scatter:
    """Adds tap values of one block of output rows to the pixels of an image [C, H, W] they came from."""

    def __init__(self, image: Tensor, window: Window, first: int, rows: int) -> None:
        (kh, _), (sy, _), (py, px), (dy, _) = window
        c, self.h, self.w = image.shape
        self.image, self.window, self.rows = image, window, rows
        self.top = first * sy - py
        self.tile = image.new_zeros(c, (rows - 1) * sy + (kh - 1) * dy + 1, self.w + 2 * px)

    def add(self, i: int, j: int, values: Tensor, alpha: float = 1) -> None:
        _, (sy, sx), _, (dy, dx) = self.window
        wo = values.shape[-1]
        y, x = i * dy, j * dx
        self.tile[:, y : y + (self.rows - 1) * sy + 1 : sy, x : x + (wo - 1) * sx + 1 : sx].add_(values, alpha=alpha)

    def flush(self) -> None:
        px = self.window.padding[1]
        bottom = self.top + self.tile.shape[1]
        top, end = max(self.top, 0), min(bottom, self.h)
        if top < end:
            self.image[:, top:end] += self.tile[:, top - self.top : end - self.top, px : px + self.w]
