"""The two convolutions and their gradients: each is one gather, or one sum over pixels, along some walk."""

from torch import Tensor

from pac_ops.backends.signatures import Gradients, Needs
from pac_ops.backends.triton.gather import gathered, input_and_kernel_gradients
from pac_ops.backends.triton.walk import sliding, spreading
from pac_ops.backends.triton.weight_gradient import weight_gradient
from pac_ops.geometry import Window


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv2d`."""
    filters = _by_tap(weight, groups)
    return gathered(input, kernel, filters, bias, weight.shape[0], sliding(window), groups)


def pacconv2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """See `reference.pacconv2d_backward`."""
    walk = sliding(window)
    filters = _by_tap(weight, groups).mT
    grad_input, grad_kernel = input_and_kernel_gradients(grad, input, kernel, filters, walk, groups, needs)
    grad_weight = None
    if needs[2]:
        summed = weight_gradient(grad, input, kernel, walk, groups, at_source=False)
        grad_weight = summed.to(weight.dtype).contiguous()
    return grad_input, grad_kernel, grad_weight


def pacconv_transpose2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv_transpose2d`."""
    filters = _by_tap(weight.flip(2, 3), groups).mT
    return gathered(input, kernel, filters, bias, weight.shape[1] * groups, spreading(window), groups)


def pacconv_transpose2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """See `reference.pacconv_transpose2d_backward`."""
    walk = spreading(window)
    filters = _by_tap(weight.flip(2, 3), groups)
    grad_input, grad_kernel = input_and_kernel_gradients(grad, input, kernel, filters, walk, groups, needs)
    grad_weight = None
    if needs[2]:
        summed = weight_gradient(input, grad, kernel, walk.back, groups, at_source=True)
        grad_weight = summed.flip(2, 3).to(weight.dtype).contiguous()
    return grad_input, grad_kernel, grad_weight


def _by_tap(weight: Tensor, groups: int) -> Tensor:
    """[groups * A, B, kh, kw] -> [groups, taps, A, B]."""
    a, b = weight.shape[0] // groups, weight.shape[1]
    return weight.reshape(groups, a, b, weight.shape[2] * weight.shape[3]).permute(0, 3, 1, 2)
