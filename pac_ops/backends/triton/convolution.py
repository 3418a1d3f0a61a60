"""The two convolutions and their gradients: each is one gather, or one sum over pixels, along some walk."""

from typing import NamedTuple

import torch
from torch import Tensor

from pac_ops.backends.signatures import Gradients, Needs
from pac_ops.backends.triton.filters import Filters
from pac_ops.backends.triton.gather import Gather, gather, gradients, is_product
from pac_ops.backends.triton.launch import planned
from pac_ops.backends.triton.layout import Key, Layout, Settings, layout, settings
from pac_ops.backends.triton.walk import sliding, spreading
from pac_ops.backends.triton.weight_gradient import WeightGradient, weight_gradient
from pac_ops.geometry import Window

_NARROW = (torch.bfloat16, torch.float16)


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv2d`."""
    return _forward(input, kernel, weight, bias, window, groups, transposed=False)


def pacconv_transpose2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv_transpose2d`."""
    return _forward(input, kernel, weight, bias, window, groups, transposed=True)


def pacconv2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """See `reference.pacconv2d_backward`."""
    return _backward(grad, input, kernel, weight, window, groups, needs, transposed=False)


def pacconv_transpose2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """See `reference.pacconv_transpose2d_backward`."""
    return _backward(grad, input, kernel, weight, window, groups, needs, transposed=True)


class _Forward(NamedTuple):
    """All of a call that follows from its shapes."""

    copied: bool  # the input, channels-last
    gather: Gather


class _Backward(NamedTuple):
    """All of a call that follows from its shapes."""

    copied: tuple[bool, bool]  # the output's gradient and the input, channels-last
    gather: Gather | None
    of_weight: WeightGradient | None


def _forward(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    window: Window,
    groups: int,
    *,
    transposed: bool,
) -> Tensor:
    layouts = (layout(input), layout(kernel), layout(weight), None if bias is None else bias.dtype)
    plan = planned(_forward_plan, layouts, window, groups, transposed, settings(input))
    return plan.gather.result(_last(input) if plan.copied else input, kernel, weight, bias)


def _forward_plan(layouts: tuple[Key, ...], window: Window, groups: int, transposed: bool, given: Key) -> _Forward:
    input, kernel, weight = (Layout(*x) for x in layouts[:3])
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    # As `torch.nn.Conv2d` has it.
    out = Layout.dense((input.shape[0], channels, *kernel.shape[4:]), input.dtype, last=input.last or weight.last)
    copied = _lies_apart(input, weight, groups)
    filters = Filters(weight, swapped=transposed, flipped=transposed)
    walk = spreading(window) if transposed else sliding(window)
    seen = _as_last(input) if copied else input
    return _Forward(copied, gather(seen, kernel, filters, out, walk, groups, Settings(*given)))


def _backward(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    needs: Needs,
    *,
    transposed: bool,
) -> Gradients:
    layouts = (layout(grad), layout(input), layout(kernel), layout(weight))
    plan = planned(_backward_plan, layouts, window, groups, needs, transposed, settings(input))
    if plan.copied[0]:
        grad = _last(grad)
    if plan.copied[1]:
        input = _last(input)
    to_input = to_kernel = to_weight = None
    if plan.gather is not None:
        to_input, to_kernel = plan.gather.run(grad, kernel, weight, factor=input if needs[1] else None)
        if to_kernel is not None and to_kernel.dtype != kernel.dtype:
            to_kernel = to_kernel.to(kernel.dtype)
    if plan.of_weight is not None:
        here, x = (input, grad) if transposed else (grad, input)
        to_weight = plan.of_weight.run(here, x, kernel)
    return to_input, to_kernel, to_weight


def _backward_plan(
    layouts: tuple[Key, ...], window: Window, groups: int, needs: Needs, transposed: bool, given: Key
) -> _Backward:
    grad, input, kernel, weight = (Layout(*x) for x in layouts)
    chosen = Settings(*given)
    copied = (_lies_apart(grad, weight, groups), _lies_apart(input, weight, groups))
    at_hand = Layout.dense(input.shape, input.dtype, last=input.last)
    grad, input = (_as_last(x) if copy else x for x, copy in zip((grad, input), copied, strict=True))
    filters = Filters(weight, swapped=not transposed, flipped=transposed)
    back = spreading(window).back if transposed else sliding(window).back
    of_both = gradients(grad, input, kernel, filters, at_hand, back, groups, needs, chosen)
    of_weight = None
    if needs[2]:
        if transposed:
            of_weight = weight_gradient(
                input, grad, kernel, weight, back, groups, chosen, at_source=True, flipped=True
            )
        else:
            of_weight = weight_gradient(grad, input, kernel, weight, sliding(window), groups, chosen)
    return _Backward(copied, of_both, of_weight)


def _lies_apart(x: Layout, weight: Layout, groups: int) -> bool:
    """Whether an image is copied, channels-last, as a product's elements of 2 bytes else are loaded one by one.

    The product would take four times as long; the copy reads and writes the image once.
    """
    return x.dtype in _NARROW and not x.last and is_product(weight.shape[0] // groups, weight.shape[1])


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _as_last(x: Layout) -> Layout:
    return Layout.dense(x.shape, x.dtype, last=True)
