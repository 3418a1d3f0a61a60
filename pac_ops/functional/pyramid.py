"""A map and its halves: the Laplacian pyramid (Burt and Adelson, 1983) of pixels that stay where they are."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops import library
from pac_ops.area import exported_aligned2d
from pac_ops.backends import choose
from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import any_open

_HELD = 2**21  # pixels of all channels that are halved together


def levels(map: Tensor, halvings: int) -> list[Tensor]:
    """The map, its half, and so on, the coarsest first; the halves float32 or wider.

    Args:
        map: [B, C, H, W].
        halvings: how often.
    """
    maps = [map]
    for _ in range(halvings):
        fine = maps[0]
        if torch.compiler.is_compiling() or torch.compiler.is_exporting() or _compiled(fine):
            maps.insert(0, _half(fine))
        else:  # some channels at a time: what is made on the way is larger than the map
            together = max(1, _HELD // max(1, fine.shape[0] * fine.shape[2] * fine.shape[3]))
            maps.insert(0, torch.cat([_half(part) for part in fine.split(together, dim=1)], dim=1))
    return maps


def with_detail(enlarged: Tensor, map: Tensor, half: Tensor, rows: slice | None = None) -> Tensor:
    """Some rows of a half enlarged, by default all, and what the map has there beyond its half enlarged plainly."""
    first = 0
    if rows is not None:
        first, half, map = rows.start, half[:, :, rows.start // 2 : rows.stop // 2 + 1], map[:, :, rows]
    map = map.to(half.dtype)
    if compiled := _compiled(map, enlarged, half):
        out: Tensor = compiled.with_detail(enlarged, map, half, first)
        return out
    plain = _doubled(half)
    plain = plain[:, :, 1:] if first % 2 else plain
    return of_size(enlarged, map) + (map - of_size(plain, map))


def _compiled(*maps: Tensor) -> Any:
    """The backend whose kernels take these maps, where nothing is recorded or traced; else None."""
    if not library.may_split(*maps):
        return None
    backend = choose.implementation(maps[0])
    return backend if hasattr(backend, "halved") else None


def _half(map: Tensor) -> Tensor:
    return halved(map.to(accumulate_dtype(map.dtype)))


def odd(x: Tensor) -> Tensor:
    """The same with an odd height and width, of an even one the last pixel twice."""
    for axis in (2, 3):
        x = _lasting(x, axis, x.shape[axis] // 2 * 2 + 1)
    return x


def of_size(x: Tensor, like: Tensor) -> Tensor:
    """The same without the pixels by which `odd` made it longer than another."""
    for axis in (2, 3):
        x = _lasting(x, axis, like.shape[axis])
    return x


def halved(x: Tensor) -> Tensor:
    """Every second pixel, weighed 1 2 1 with those beside it, at the edge with itself: n // 2 + 1 of n."""
    if torch.compiler.is_exporting():  # a mean of two, and again; of odd lengths one is left
        return F.avg_pool2d(F.avg_pool2d(F.pad(x, (1, 2, 1, 2), mode="replicate"), 2, 1), 2)
    return compiled.halved(x) if (compiled := _compiled(x)) else _every_second(odd(x))


def _every_second(x: Tensor) -> Tensor:
    """`halved` of an odd height and width."""
    for axis in (2, 3):
        before = (slice(None),) * axis
        near, between = x[(*before, slice(None, None, 2))], x[(*before, slice(1, None, 2))]
        first, last = near.narrow(axis, 0, 1), near.narrow(axis, near.shape[axis] - 1, 1)
        x = (torch.cat([first, between], axis) + torch.cat([between, last], axis)) * 0.25 + near * 0.5
    return x


def _doubled(x: Tensor) -> Tensor:
    """A pixel between each two, their mean: from n to 2n - 1."""
    if torch.compiler.is_exporting():
        size = (2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
        if any_open(*size):
            return exported_aligned2d(x, size)
        # What F.interpolate calls: its own calls may be looked for.
        enlarged: Tensor = torch.ops.aten.upsample_bilinear2d.vec(x, size, True, None)
        return enlarged
    for axis in (2, 3):
        length = x.shape[axis]
        first, second = x.narrow(axis, 0, length - 1), x.narrow(axis, 1, length - 1)
        pairs = torch.stack([first, (first + second) * 0.5], axis + 1).flatten(axis, axis + 1)
        x = torch.cat([pairs, x.narrow(axis, length - 1, 1)], axis)
    return x


def _lasting(x: Tensor, axis: int, length: Any) -> Tensor:
    """The first so many of an axis, or one more than it has, the last one twice."""
    given = x.shape[axis]
    if isinstance(length, torch.SymInt):
        return x.index_select(axis, torch.arange(length, device=x.device).clamp_max(given - 1))
    if length == given:
        return x
    if length < given:
        return x.narrow(axis, 0, length)
    return torch.cat([x, x.narrow(axis, given - 1, 1)], axis)
