"""The compiled CPU path in float64: distances' gradients at any size, the rest where maps are small.

Of a small map the time goes to calling operations, of which `cpu` has a dozen and this has one. Of a large one it
goes to matrix products, which `cpu` leaves to PyTorch.
"""

from functools import lru_cache

import torch
from torch import Tensor

from pac_ops.backends.blocked import convolution, distance
from pac_ops.backends.blocked.convolution import pacconv_transpose2d, pacconv_transpose2d_backward
from pac_ops.backends.blocked.enlargement import (
    pacresize2d,
    pacresize2d_backward,
    resize_distance2d,
    resize_distance2d_backward,
)
from pac_ops.backends.blocked.pooling import pacpool2d, pacpool2d_backward
from pac_ops.backends.native.compiled import CWindow, run
from pac_ops.backends.native.distance import pulled, sizes_of_distances
from pac_ops.backends.native.pooling import contiguous
from pac_ops.backends.signatures import Gradients, Needs
from pac_ops.geometry import Window

__all__ = [
    "gaussian_kernel2d",
    "pacconv2d",
    "pacconv2d_backward",
    "pacconv_transpose2d",
    "pacconv_transpose2d_backward",
    "pacpool2d",
    "pacpool2d_backward",
    "pacresize2d",
    "pacresize2d_backward",
    "resize_distance2d",
    "resize_distance2d_backward",
    "squared_distance2d",
    "squared_distance2d_backward",
]

SMALL = 2**20  # multiplications of a forward pass


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d`."""
    size, shapes = sizes_of_distances(guide.shape, window)
    out = guide.new_empty(size)
    if out.numel() * guide.shape[1] > SMALL:
        return distance.squared_distance2d(guide, window)
    run("pac_distance_double", shapes, guide.contiguous(), out)
    return out


def gaussian_kernel2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.gaussian_kernel2d`."""
    return squared_distance2d(guide, window).mul_(-0.5).exp_()


def squared_distance2d_backward(grad: Tensor, guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d_backward`."""
    return pulled("pac_distance_backward_double", grad, guide, window)


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv2d`."""
    shapes = _shapes(input.shape, weight.shape, kernel.shape[4:], window, groups)
    if shapes is None:
        return convolution.pacconv2d(input, kernel, weight, bias, window, groups)
    out = input.new_empty(input.shape[0], weight.shape[0], *kernel.shape[4:])
    given = (input.contiguous(), kernel.double().contiguous(), weight.contiguous(), contiguous(bias))
    run("pac_convolution_double", shapes, *given, out)
    return out


def pacconv2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """See `reference.pacconv2d_backward`."""
    shapes = _shapes(input.shape, weight.shape, kernel.shape[4:], window, groups)
    if shapes is None:
        return convolution.pacconv2d_backward(grad, input, kernel, weight, window, groups, needs)
    given = (input.contiguous(), kernel.double().contiguous(), weight.contiguous(), grad.contiguous())
    grad_input, grad_kernel, grad_weight = (
        torch.zeros_like(x) if need else None for x, need in zip(given, needs, strict=False)
    )
    run("pac_convolution_backward_double", shapes, *given, grad_input, grad_kernel, grad_weight)
    return grad_input, None if grad_kernel is None else grad_kernel.to(kernel.dtype), grad_weight


@lru_cache
def _shapes(input: torch.Size, weight: torch.Size, size: torch.Size, window: Window, groups: int) -> CWindow | None:
    """What the kernels are told of a convolution, None of one that is not small."""
    multiplications = input[0] * weight.numel() * size.numel()
    if multiplications > SMALL:
        return None
    return CWindow(*input, weight[0], *size, groups, *window)
