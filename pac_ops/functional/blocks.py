"""A guided enlargement as exporters get it: attention of blocks of fine pixels to the coarse pixels near them.

Blocks are 4 x 4 fine pixels. With guides scaled by s, log(w_ij K_ij) is f_i g_j - ||g_j||^2 / 2 + log w_ij, up to
what all neighbours j of a pixel have in common: a product of two matrices a block. A softmax over the coarse pixels
that the block sees and a second product follow; a finite log w leaves nothing of those that are no neighbours.

Maps are made channels-last, so that what is gathered lies together. Sizes are fixed, and what depends on them alone
is a constant of the file.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Enlargement, finite_log
from pac_ops.geometry import Pair

_SIDE = 4  # of a block


class _Tables(NamedTuple):
    """What depends on sizes alone.

    Tables come in pairs, of rows, [n or 1, 1, pixels, places], and of columns, [m or 1, pixels, places], which make
    one by an operation that broadcasts; where all blocks are alike, as one that is the result.
    """

    places: Tensor  # of the map with its rows one after the other, that blocks see: [n, m, places]
    logs: tuple[Tensor, ...]  # log w, added
    plain: tuple[Tensor, ...]  # weights of mode="bilinear", multiplied; empty where they are not needed
    smooth: tuple[Tensor, ...]  # w over their sum, likewise


def enlarged(input: Tensor, guide: Tensor, coarse_guide: Tensor, where: Enlargement, residual: bool) -> Tensor:
    """One step, with K of guides that are scaled already.

    Args:
        input: [B, C, h, w].
        guide: [B, G, H, W], float32 or wider.
        coarse_guide: [B, G, h, w], likewise.
        where: which neighbours.
        residual: see `pacresize2d`.

    Returns:
        [B, C, H, W], float32 or wider.
    """
    (_, channels, height, width), (h, w) = guide.shape, coarse_guide.shape[2:]
    tables = _tables(where, (h, w), (height, width), guide, residual=residual and where.footprint > 2)
    rows, columns = _count(height), _count(width)
    wide = torch.promote_types(accumulate_dtype(input.dtype), guide.dtype)
    lengths = (coarse_guide * coarse_guide).sum(dim=1, keepdim=True)
    seen = torch.cat([x.to(wide) for x in (coarse_guide, lengths, input)], dim=1).permute(0, 2, 3, 1)
    seen = seen.flatten(1, 2).index_select(1, tables.places.flatten())
    seen = seen.reshape(-1, *tables.places.shape, seen.shape[2])  # [B, rows, columns, places, ...]
    g_j, v_j = seen.split([channels + 1, input.shape[1]], dim=4)
    padded = F.pad(guide.to(wide), (0, columns * _SIDE - width, 0, rows * _SIDE - height, 0, 1), value=-0.5)
    f_i = _blocks(padded.permute(0, 2, 3, 1), rows, columns, (_SIDE, _SIDE))
    logits = f_i @ g_j.transpose(3, 4)  # [B, rows, columns, pixels, places]
    for table in tables.logs:
        logits = logits + table
    weights = logits.softmax(dim=4)
    if tables.plain:
        weights = weights + (_product(tables.plain) - _product(tables.smooth))
    out = (weights @ v_j).reshape(-1, rows, columns, _SIDE, _SIDE * input.shape[1])
    out = out.transpose(2, 3).reshape(-1, rows * _SIDE, columns * _SIDE, input.shape[1])
    cropped: Tensor = out.narrow(1, 0, height).narrow(2, 0, width).permute(0, 3, 1, 2)
    return cropped


def _count(length: int) -> int:
    """Of blocks along an axis."""
    return (length + _SIDE - 1) // _SIDE


def _blocks(x: Tensor, rows: int, columns: int, size: Pair) -> Tensor:
    """[B, rows p, columns q, C] -> [B, rows, columns, p q, C]."""
    p, q, channels = *size, x.shape[3]
    apart = x.reshape(-1, rows, p, columns, q * channels).transpose(2, 3)
    return apart.reshape(-1, rows, columns, p * q, channels)


def _product(tables: tuple[Tensor, ...]) -> Tensor:
    return tables[0] if len(tables) == 1 else tables[0] * tables[1]


# --- tables -------------------------------------------------------------------------------------------------------


class _Axis(NamedTuple):
    """Tables of an axis, [n, _SIDE, p], or [1, _SIDE, p] where those of all blocks are alike."""

    pixels: Tensor  # of the map, that blocks see: [n, p]
    logs: Tensor
    plain: Tensor
    smooth: Tensor


def _tables(where: Enlargement, coarse: Pair, fine: Pair, like: Tensor, *, residual: bool) -> _Tables:
    with _disable_current_modes():  # exporters make constants of tensors that they did not see
        tables = _computed(where, coarse, fine, like.dtype, residual=residual)
    moved = (tuple(x.to(like.device) for x in pair) for pair in tables[1:])
    return _Tables(tables.places.to(like.device), *moved)


def _computed(where: Enlargement, coarse: Pair, fine: Pair, dtype: torch.dtype, *, residual: bool) -> _Tables:
    down, across = (_axis(where, axis, coarse, fine, dtype) for axis in (0, 1))
    window = (down.logs.shape[2], across.logs.shape[2])
    places = coarse[1] * down.pixels[:, None, :, None] + across.pixels[:, None, :]
    places = places.flatten(2)
    logs = _pair(down.logs, across.logs, window)
    if len(logs) == 2 and down.logs.shape[0] == across.logs.shape[0] == 1:
        logs = (logs[0] + logs[1],)
    if not residual:
        return _Tables(places, logs, (), ())
    plain, smooth = (_pair(*both, window) for both in ((down.plain, across.plain), (down.smooth, across.smooth)))
    return _Tables(places, logs, plain, smooth)


def _pair(down: Tensor, across: Tensor, window: Pair) -> tuple[Tensor, ...]:
    """A row's and a column's part of each pixel and place of a block."""
    of_rows = down[:, :, None, :, None].expand(-1, _SIDE, _SIDE, *window)
    of_columns = across[:, None, :, None, :].expand(-1, _SIDE, _SIDE, *window)
    sizes = (_SIDE * _SIDE, window[0] * window[1])
    return of_rows.reshape(-1, 1, *sizes), of_columns.reshape(-1, *sizes)


def _axis(where: Enlargement, axis: int, coarse: Pair, fine: Pair, dtype: torch.dtype) -> _Axis:
    place, last = where.place(axis, coarse, fine, torch.device("cpu"), _count(fine[axis]) * _SIDE)
    place = place.view(-1, _SIDE, 1)
    if where.footprint > 2:  # neighbours outside the map do not count; of 2 x 2, the one at the edge counts for both
        place = place.clamp(min=0)
    first, final = place[:, :1].floor(), place[:, -1:].floor()
    reach = where.footprint // 2
    near = first + torch.arange(1 - reach, int((final - first).max()) + reach + 1)
    tent, plain = ((1 - (place - near).abs() * (2 / n)).clamp_min(0) for n in (where.footprint, 2))
    if where.footprint > 2:
        inside = torch.logical_and(near >= 0, near <= last)
        tent, plain = tent * inside, plain * inside
    tables = [x.to(dtype) for x in (finite_log(tent), plain, tent / tent.sum(dim=2, keepdim=True))]
    if all(bool((x == x[:1]).all()) for x in tables):
        tables = [x[:1] for x in tables]
    return _Axis(near.clamp(0, last).long().squeeze(1), *tables)
