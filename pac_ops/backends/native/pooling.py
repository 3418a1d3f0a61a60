"""Pooling, and depthwise convolution, which is pooling with a weight: row by row."""

from torch import Tensor

from pac_ops.backends.native.compiled import new_gradients, run, shapes_of
from pac_ops.formats import contiguous
from pac_ops.geometry import Window


def depthwise(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, out: Tensor
) -> None:
    """Write a depthwise convolution to `out`."""
    input, kernel = contiguous(input), kernel.float().contiguous()
    shapes = shapes_of(input, out, window, input.shape[1])
    run("pac_pooling", shapes, input, kernel, 1, weight.contiguous(), contiguous(bias), out)


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """See `reference.pacpool2d`."""
    input, kernel = contiguous(input), kernel.float().contiguous()
    out = input.new_empty(*input.shape[:2], *kernel.shape[-2:])
    run("pac_pooling", shapes_of(input, out, window), input, kernel, kernel.shape[1], None, None, out)
    return out


def pacpool2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, window: Window, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacpool2d_backward`."""
    grad_input, grad_kernel, _ = new_gradients(input, kernel, kernel, (*needs, False))
    pool_backward(grad, input, kernel, None, window, grad_input, grad_kernel, None)
    return grad_input, grad_kernel


def pool_backward(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor | None,
    window: Window,
    grad_input: Tensor | None,
    grad_kernel: Tensor | None,
    grad_weight: Tensor | None,
) -> None:
    """Write the gradients that are needed, of pooling or, with a weight, of a depthwise convolution."""
    input, kernel, grad = contiguous(input), kernel.float().contiguous(), contiguous(grad)
    given = (input, kernel, kernel.shape[1], contiguous(weight), grad)
    run("pac_pooling_backward", shapes_of(input, grad, window), *given, grad_input, grad_kernel, grad_weight)
