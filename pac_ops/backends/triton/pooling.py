"""Pooling: the gather whose weights are all ones and whose groups are single channels."""

from torch import Tensor

from pac_ops.backends.triton.gather import gathered, input_and_kernel_gradients
from pac_ops.backends.triton.walk import sliding
from pac_ops.geometry import Window


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """See `reference.pacpool2d`."""
    channels = input.shape[1]
    return gathered(input, kernel, None, None, channels, sliding(window), channels)


def pacpool2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, window: Window, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacpool2d_backward`."""
    return input_and_kernel_gradients(grad, input, kernel, None, sliding(window), input.shape[1], needs)
