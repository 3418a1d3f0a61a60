"""Squared distances between pixels, and the gaussian of them."""

from functools import lru_cache

import torch
from torch import Tensor

from pac_ops.backends.native.compiled import CWindow, run
from pac_ops.geometry import Window


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d`."""
    return _distances("pac_distance", guide, window)


def gaussian_kernel2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.gaussian_kernel2d`."""
    return _distances("pac_gaussian", guide, window)


def _distances(function: str, guide: Tensor, window: Window) -> Tensor:
    guide = guide.contiguous()
    size, shapes = _sizes_of_distances(guide.shape, window)
    out = guide.new_empty(size)
    run(function, shapes, guide, out)
    return out


@lru_cache  # of a small map, the distances take less time than this
def _sizes_of_distances(guide: torch.Size, window: Window) -> tuple[tuple[int, ...], CWindow]:
    size = window.output_size(guide[2], guide[3])
    return (guide[0], 1, *window.kernel_size, *size), CWindow(*guide, 1, *size, 1, *window)
