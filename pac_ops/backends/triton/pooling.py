"""Pooling: the gather whose weights are all ones and whose groups are single channels."""

from torch import Tensor

from pac_ops.backends.triton.gather import Gather, gather, gradients
from pac_ops.backends.triton.launch import planned
from pac_ops.backends.triton.layout import Key, Layout, Settings, layout, settings
from pac_ops.backends.triton.walk import sliding
from pac_ops.geometry import Window


def pacpool2d(input: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """See `reference.pacpool2d`."""
    return planned(_plan, layout(input), layout(kernel), window, settings(input)).result(input, kernel)


def _plan(of_input: Key, of_kernel: Key, window: Window, given: Key) -> Gather:
    input, kernel = Layout(*of_input), Layout(*of_kernel)
    out = Layout.dense((*input.shape[:2], *kernel.shape[4:]), input.dtype, last=input.last)
    return gather(input, kernel, None, out, sliding(window), input.shape[1], Settings(*given))


def pacpool2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, window: Window, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacpool2d_backward`."""
    layouts = (layout(grad), layout(input), layout(kernel))
    plan = planned(_backward_plan, *layouts, window, needs, settings(input))
    if plan is None:
        return None, None
    to_input, to_kernel = plan.run(grad, kernel, factor=input if needs[1] else None)
    return to_input, None if to_kernel is None else to_kernel.to(kernel.dtype)


def _backward_plan(
    of_grad: Key, of_input: Key, of_kernel: Key, window: Window, needs: tuple[bool, bool], given: Key
) -> Gather | None:
    grad, input, kernel = Layout(*of_grad), Layout(*of_input), Layout(*of_kernel)
    out = Layout.dense(input.shape, input.dtype, last=input.last)
    return gradients(grad, input, kernel, None, out, sliding(window).back, input.shape[1], needs, Settings(*given))
