"""The compiled CPU path in float64: distances' gradients at any size, the rest where maps are small.

Of a small map the time goes to calling operations, of which `cpu` has a dozen and this has one. Of a large one it
goes to matrix products, which `cpu` leaves to PyTorch.
"""

import torch
from torch import Tensor

from pac_ops.backends.blocked import convolution, distance, pooling
from pac_ops.backends.blocked.enlargement import (
    pacresize2d,
    pacresize2d_backward,
    resize_distance2d,
    resize_distance2d_backward,
)
from pac_ops.backends.native.compiled import run, shapes_of
from pac_ops.backends.native.distance import pulled, sizes_of_distances
from pac_ops.backends.signatures import Gradients, Needs
from pac_ops.formats import contiguous
from pac_ops.geometry import Window, gather, spread, turned

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
    if not _is_small(weight.numel(), kernel):
        return convolution.pacconv2d(input, kernel, weight, bias, window, groups)
    out = input.new_empty(input.shape[0], weight.shape[0], *kernel.shape[4:])
    given = (input.contiguous(), kernel.double().contiguous(), weight.contiguous(), contiguous(bias))
    run("pac_convolution_double", shapes_of(input, out, window, groups), *given, out)
    return out


def pacconv2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """See `reference.pacconv2d_backward`."""
    if not _is_small(weight.numel(), kernel):
        return convolution.pacconv2d_backward(grad, input, kernel, weight, window, groups, needs)
    given = (input.contiguous(), kernel.double().contiguous(), weight.contiguous(), grad.contiguous())
    grad_input, grad_kernel, grad_weight = (
        torch.zeros_like(x) if need else None for x, need in zip(given, needs, strict=False)
    )
    run(
        "pac_convolution_backward_double",
        shapes_of(input, grad, window, groups),
        *given,
        grad_input,
        grad_kernel,
        grad_weight,
    )
    return grad_input, None if grad_kernel is None else grad_kernel.to(kernel.dtype), grad_weight


def pacconv_transpose2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv_transpose2d`: of a small map, zeros are multiplied sooner than told apart."""
    if not _is_small(weight.numel(), kernel):
        return convolution.pacconv_transpose2d(input, kernel, weight, bias, window, groups)
    spaced = spread(input, window, *kernel.shape[4:])
    return pacconv2d(spaced, kernel, turned(weight, groups), bias, window.stepping(), groups)


def pacconv_transpose2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """See `reference.pacconv_transpose2d_backward`."""
    if not _is_small(weight.numel(), kernel):
        return convolution.pacconv_transpose2d_backward(grad, input, kernel, weight, window, groups, needs)
    spaced, filters = spread(input, window, *kernel.shape[4:]), turned(weight, groups)
    grad_spaced, grad_kernel, grad_turned = pacconv2d_backward(
        grad, spaced, kernel, filters, window.stepping(), groups, needs
    )
    grad_input = None if grad_spaced is None else gather(grad_spaced, window, input.shape[2], input.shape[3])
    return grad_input, grad_kernel, None if grad_turned is None else turned(grad_turned, groups)


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """See `reference.pacpool2d`: a depthwise convolution with ones."""
    channels = input.shape[1]
    if not channels or not _is_small(channels * kernel.shape[2] * kernel.shape[3], kernel):
        return pooling.pacpool2d(input, kernel, window)
    given = _as_depthwise(input, kernel)
    return pacconv2d(*given, None, window, given[2].shape[0]).view(*input.shape[:2], *kernel.shape[4:])


def pacpool2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, window: Window, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacpool2d_backward`."""
    channels = input.shape[1]
    if not channels or not _is_small(channels * kernel.shape[2] * kernel.shape[3], kernel):
        return pooling.pacpool2d_backward(grad, input, kernel, window, needs)
    given = _as_depthwise(input, kernel)
    of_images = grad.reshape(*given[0].shape[:2], *grad.shape[2:])
    grads = pacconv2d_backward(of_images, *given, window, given[2].shape[0], (*needs, False))
    grad_input, grad_kernel = (
        None if g is None else g.view(x.shape) for g, x in zip(grads, (input, kernel), strict=False)
    )
    return grad_input, grad_kernel


def _as_depthwise(input: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Input, K and a weight of ones; where each channel has its own K, each is an image by itself."""
    channels = input.shape[1]
    if kernel.shape[1] > 1:
        input, kernel, channels = input.flatten(0, 1).unsqueeze(1), kernel.flatten(0, 1).unsqueeze(1), 1
    return input, kernel, input.new_ones(channels, 1, *kernel.shape[2:4])


def _is_small(weights: int, kernel: Tensor) -> bool:
    return kernel.shape[0] * weights * kernel.shape[4] * kernel.shape[5] <= SMALL
