"""Squared distances between pixels, the gaussian of them, and their gradients."""

from functools import lru_cache

import torch
from torch import Tensor

from pac_ops.backends.blocked import distance as blocked
from pac_ops.backends.native.compiled import CWindow, has, run
from pac_ops.formats import contiguous
from pac_ops.geometry import Window


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d`."""
    return _distances("pac_distance", guide, window)


def gaussian_kernel2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.gaussian_kernel2d`."""
    return _distances("pac_gaussian", guide, window)


def squared_distance2d_backward(grad: Tensor, guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d_backward`."""
    if not has("pac_distance_backward"):
        return blocked.squared_distance2d_backward(grad, guide, window)
    return pulled("pac_distance_backward", grad, guide, window)


def pulled(function: str, grad: Tensor, guide: Tensor, window: Window) -> Tensor:
    """The gradient of distances, by the kernel for the guide's dtype."""
    grad, guide = contiguous(grad.to(guide.dtype)), contiguous(guide)
    out = torch.empty_like(guide)
    run(function, sizes_of_distances(guide.shape, window)[1], grad, guide, out)
    return out


def _distances(function: str, guide: Tensor, window: Window) -> Tensor:
    guide = contiguous(guide)
    size, shapes = sizes_of_distances(guide.shape, window)
    out = guide.new_empty(size)
    run(function, shapes, guide, out)
    return out


@lru_cache  # of a small map, the distances take less time than this
def sizes_of_distances(guide: torch.Size, window: Window) -> tuple[tuple[int, ...], CWindow]:
    """The shape of a guide's distances, and what their kernels are told."""
    size = window.output_size(guide[2], guide[3])
    return (guide[0], 1, *window.kernel_size, *size), CWindow(*guide, 1, *size, 1, *window)
