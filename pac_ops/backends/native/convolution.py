"""Convolution and its gradients as implicit matrix products; depthwise ones go row by row."""

import ctypes
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pac_ops.backends.blocked import convolution as blocked
from pac_ops.backends.native.compiled import FLOAT32, CWindow, new_gradients, run
from pac_ops.backends.native.pooling import pool_backward, pooled
from pac_ops.backends.signatures import Gradients, Needs
from pac_ops.formats import channels_last, contiguous
from pac_ops.geometry import Window


class Part(ctypes.Structure):
    """`Part` of csrc/convolution.c: one convolution of those that share their tensors."""

    _fields_ = [("window", CWindow), *((name, ctypes.c_int64) for name in ("kernel", "weight", "out"))]


class Weights(NamedTuple):
    """Elements of a tensor, from `first` on and `step` apart, as a weight [groups, outputs, inputs, kh, kw].

    A step may be negative, which a tensor's stride may not.
    """

    of: Tensor
    first: int
    step: tuple[int, int, int, int, int]

    @classmethod
    def all_of(cls, weight: Tensor, groups: int) -> "Weights":
        """Of a convolution's weight [O, C/groups, kh, kw]."""
        outputs, inputs, down, across = weight.stride()
        return cls(weight, 0, (weight.shape[0] // groups * outputs, outputs, inputs, down, across))

    @property
    def pointer(self) -> int:
        """The address of the first element."""
        return self.of.data_ptr() + self.first * self.of.element_size()


def pacconv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    """See `reference.pacconv2d`."""
    return convolved(input, kernel, weight, bias, window, groups, FLOAT32)


def convolved(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int, products: str
) -> Tensor:
    """A convolution of float32 tensors; `products` is what their products are of, FLOAT32 or BFLOAT16."""
    if not input.shape[1]:  # nothing to sum
        return blocked.pacconv2d(input, kernel, weight, bias, window, groups)
    if is_depthwise(weight, groups):
        return pooled(input, kernel, weight, bias, window)
    out = input.new_empty(input.shape[0], weight.shape[0], *kernel.shape[-2:])
    input, kernel = contiguous(input), kernel.float()
    part = part_of(input, kernel, Weights.all_of(weight, groups), window, groups, out)
    run(f"pac_convolution{products}", part, 1, input, kernel, weight, contiguous(bias), out)
    return out


def pacconv2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Window, groups: int, needs: Needs
) -> Gradients:
    """See `reference.pacconv2d_backward`."""
    return gradients(grad, input, kernel, weight, window, groups, needs, FLOAT32)


def gradients(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    window: Window,
    groups: int,
    needs: Needs,
    products: str,
) -> Gradients:
    """The gradients of `convolved`."""
    if not (grad.numel() and input.numel()):
        return blocked.pacconv2d_backward(grad, input, kernel, weight, window, groups, needs)
    grads = new_gradients(input, kernel, weight, needs)
    if is_depthwise(weight, groups):
        pool_backward(grad, input, kernel, weight, window, *grads)
        return grads
    into = None if grads[2] is None else Weights.all_of(grads[2], groups)
    grad = contiguous(grad) if channels_last(grad) else grad
    weights = Weights.all_of(weight, groups)
    convolve_backward(grad, input, kernel, weights, window, groups, grads[0], grads[1], into, products)
    return grads


def is_depthwise(weight: Tensor, groups: int) -> bool:
    """Whether each channel is convolved by itself, to one output."""
    return weight.shape[1] == 1 and weight.shape[0] == groups


def part_of(input: Tensor, kernel: Tensor, weights: Weights, window: Window, groups: int, out: Tensor) -> Part:
    """One convolution; K and output may have any strides."""
    shapes = _shapes(input.shape, out.shape, window, groups, kernel.stride(), weights.step, out.stride())
    return Part(shapes, 0, weights.first, 0)


def convolve_backward(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weights: Weights,
    window: Window,
    groups: int,
    grad_input: Tensor | None,
    grad_kernel: Tensor | None,
    grad_weights: Weights | None,
    products: str,
) -> None:
    """Write the gradients of one convolution; the input's, which is contiguous, is added to."""
    input, kernel = contiguous(input), kernel.float()
    of_grads = () if grad_kernel is None else grad_kernel.stride(), () if grad_weights is None else grad_weights.step
    steps = (kernel.stride(), weights.step, grad.stride(), *of_grads)
    shapes = _shapes(input.shape, grad.shape, window, groups, *steps)
    to_weights = None if grad_weights is None else grad_weights.pointer
    given = (input, kernel, weights.pointer, grad)
    run(f"pac_convolution_backward{products}", shapes, *given, grad_input, grad_kernel, to_weights)


@lru_cache(maxsize=1024)  # of a small map, the convolution takes less time than this
def _shapes(
    input: torch.Size,
    out: torch.Size,
    window: Window,
    groups: int,
    kernel: Sequence[int],
    weight: Sequence[int],
    out_step: Sequence[int],
    grad_kernel: Sequence[int] = (),
    grad_weight: Sequence[int] = (),
) -> CWindow:
    """What the kernels are told of a convolution: shapes, and the strides of tensors, K's with its channels."""
    shapes = CWindow(*input, out[1], *out[2:], groups, *window)
    shapes.kernel_step = (kernel[0], *kernel[2:])
    shapes.weight_step = tuple(weight)
    shapes.out_step = tuple(out_step)
    if grad_kernel:
        shapes.grad_kernel_step = (grad_kernel[0], *grad_kernel[2:])
    if grad_weight:
        shapes.grad_weight_step = tuple(grad_weight)
    return shapes
