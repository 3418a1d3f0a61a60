"""The CPU path of guided enlargement, in plain torch: neighbour by neighbour, the columns before the rows.

Columns are gathered at the coarse height, where there are few rows; a fine row is then a copy of a whole row.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Enlargement


def resize_distance2d(guide: Tensor, coarse: Tensor, where: Enlargement) -> Tensor:
    """See `reference.resize_distance2d`."""
    wide = accumulate_dtype(guide.dtype)
    f_i, n = guide.to(wide), where.footprint
    out = f_i.new_empty(guide.shape[0], 1, n, n, *guide.shape[2:])
    for a, b, g_j in _neighbours(coarse.to(wide), where, guide.shape[2], guide.shape[3]):
        torch.sum((f_i - g_j).square_(), dim=1, out=out[:, 0, a, b])
    return out


def resize_distance2d_backward(
    grad: Tensor, guide: Tensor, coarse: Tensor, where: Enlargement
) -> tuple[Tensor, Tensor]:
    """See `reference.resize_distance2d_backward`."""
    wide = accumulate_dtype(guide.dtype)
    f_i = guide.to(wide)
    to_guide = torch.zeros_like(f_i)
    to_coarse = _Sums(where, coarse, to_guide)
    for a, b, g_j in _neighbours(coarse.to(wide), where, guide.shape[2], guide.shape[3]):
        pull = (f_i - g_j).mul_(grad[:, :, a, b]).mul_(2)
        to_guide += pull
        to_coarse.add(a, b, pull.neg_())
    return to_guide.to(guide.dtype), to_coarse.total().to(coarse.dtype)


def pacresize2d(input: Tensor, kernel: Tensor, where: Enlargement) -> Tensor:
    """See `reference.pacresize2d`."""
    wide = accumulate_dtype(input.dtype)
    ho, wo = kernel.shape[-2:]
    out = input.new_zeros(*input.shape[:2], ho, wo, dtype=wide)
    for a, b, v_j in _neighbours(input.to(wide), where, ho, wo):
        out.addcmul_(v_j, kernel[:, :, a, b].to(wide))
    return out.to(input.dtype)


def pacresize2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, where: Enlargement, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacresize2d_backward`."""
    wide = accumulate_dtype(input.dtype)
    g_i, n = grad.to(wide), where.footprint
    grad_input = grad_kernel = None
    if needs[0]:
        sums = _Sums(where, input, g_i)
        for a in range(n):
            for b in range(n):
                sums.add(a, b, g_i * kernel[:, :, a, b].to(wide))
        grad_input = sums.total().to(input.dtype)
    if needs[1]:
        grad_kernel = kernel.new_empty(kernel.shape)
        for a, b, v_j in _neighbours(input.to(wide), where, grad.shape[2], grad.shape[3]):
            grad_kernel[:, 0, a, b] = v_j.mul_(g_i).sum(dim=1)
    return grad_input, grad_kernel


def _neighbours(x: Tensor, where: Enlargement, ho: int, wo: int) -> Iterator[tuple[int, int, Tensor]]:
    """For each neighbour (a, b) of a footprint, its values at every fine pixel: a new [B, C, Ho, Wo]."""
    rows, columns = where.neighbours((x.shape[2], x.shape[3]), (ho, wo), x.device)
    for b in range(where.footprint):
        across = x.index_select(3, columns[:, b])
        for a in range(where.footprint):
            yield a, b, across.index_select(2, rows[:, a])


class _Sums:
    """The transpose of `_neighbours`: adds values of fine pixels to the coarse pixels that are their neighbours."""

    def __init__(self, where: Enlargement, coarse: Tensor, fine: Tensor) -> None:
        height, width = coarse.shape[2:]
        self._rows, self._columns = where.neighbours((height, width), (fine.shape[2], fine.shape[3]), fine.device)
        self._across = [fine.new_zeros(*fine.shape[:2], height, fine.shape[3]) for _ in range(where.footprint)]
        self._width = width

    def add(self, a: int, b: int, values: Tensor) -> None:
        self._across[b].index_add_(2, self._rows[:, a], values)

    def total(self) -> Tensor:
        total = self._across[0].new_zeros(*self._across[0].shape[:3], self._width)
        for b, across in enumerate(self._across):
            total.index_add_(3, self._columns[:, b], across)
        return total
