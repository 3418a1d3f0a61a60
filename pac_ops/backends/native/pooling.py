"""Pooling, and depthwise convolution, which is pooling with a weight: row by row, or by vectors of channels."""

import torch
from torch import Tensor

from pac_ops.backends.native import compiled
from pac_ops.backends.native.compiled import has, new_gradients, run, shapes_of
from pac_ops.formats import channels_last, contiguous, empty
from pac_ops.geometry import Window


def pooled(input: Tensor, kernel: Tensor, weight: Tensor | None, bias: Tensor | None, window: Window) -> Tensor:
    """Pooling or, with a weight, depthwise convolution; of channels-last images channels-last."""
    kernel, weight, bias = kernel.float().contiguous(), contiguous(weight), contiguous(bias)
    size = (*input.shape[:2], *kernel.shape[-2:])
    if kernel.shape[1] == 1 and _by_channels(input):
        out = empty(size, input, input)
        run("pac_pooling_last", shapes_of(input, out, window), input, kernel, weight, bias, out)
        return out
    input, out = contiguous(input), input.new_empty(size)
    run("pac_pooling", shapes_of(input, out, window), input, kernel, kernel.shape[1], weight, bias, out)
    return out


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """See `reference.pacpool2d`."""
    return pooled(input, kernel, None, None, window)


def _by_channels(input: Tensor) -> bool:
    """Whether a vector of channels lies side by side."""
    dense = input.is_contiguous(memory_format=torch.channels_last)
    return channels_last(input) and dense and input.shape[1] >= compiled.lanes() and has("pac_pooling_last")


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
