"""What each operator takes, which function of a backend computes it, and the shape of what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops import formats
from pac_ops.backends import choose
from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Enlargement
from pac_ops.geometry import Window
from pac_ops.library.calls import define, define_autocast

Ints = Sequence[int]
FORMATTED = "FORMATTED"  # what a backend has that returns the right memory formats itself
OR_PLAIN = "_or_plain"  # ends the names of operators that may be PyTorch's own

_SLIDING = "int[2] stride, int[2] padding, int[2] dilation"
_WINDOW = f"int[2] kernel_size, {_SLIDING}"
_ENLARGEMENT = "float[]? scale_factor, bool align_corners, int footprint, int refined"


@dataclass(frozen=True)
class Operator:
    """`name(operands [, bias], options) -> Tensor`, and `name_backward(grad, operands, options [, needs])`.

    The backward returns a gradient for each operand; where it takes `needs`, of those that are not needed an empty
    tensor, as a schema cannot return None.
    """

    name: str
    operands: tuple[str, ...]
    options: str  # of the schema
    for_backend: Callable[..., tuple[Any, ...]]  # the arguments as the backends' functions take them
    shape: Callable[..., tuple[int, ...]]  # of the output, from the arguments
    chosen_by: int = 0  # the operand whose device and dtype choose the backend
    linear: bool = False  # in each operand, with `needs` and the input's dtype; else a distance, as wide as sums are
    bias: bool = False
    followed: tuple[int, ...] = ()  # operands that are images or weights: the output has their memory format
    plain: Callable[..., Tensor] | None = None  # PyTorch's own, of the same arguments, which it is where K is 1

    def kernel(self) -> Callable[..., Any]:
        """The function that has a backend compute it."""
        name, chosen_by, for_backend, followed = self.name, self.chosen_by, self.for_backend, self.followed

        def run(*arguments: Any) -> Any:
            backend = choose.implementation(arguments[chosen_by])
            out = getattr(backend, name)(*for_backend(*arguments))
            if not followed or hasattr(backend, FORMATTED):
                return out
            return formats.like(out, *[arguments[k] for k in followed])

        return run

    def kernel_or_plain(self) -> Callable[..., Any]:
        """The function of (operands, bias, open, options): where `open` is False all K are 1, and PyTorch's own runs.

        So the result is PyTorch's to the last bit. A CUDA graph, which cannot branch, records the other way.
        """
        run, plain, followed = self.kernel(), self.plain, self.followed

        def run_or_plain(
            input: Tensor, kernel: Tensor, weight: Tensor, bias: Any, open: Tensor, *options: Any
        ) -> Any:
            recorded = open.is_cuda and torch.cuda.is_current_stream_capturing()
            if plain is None or recorded or bool(open):
                return run(input, kernel, weight, bias, *options)
            return formats.like(
                plain(input, kernel, weight, bias, *options), *[(input, kernel, weight)[k] for k in followed]
            )

        return run_or_plain

    def run_backward(self, grad: Tensor, *arguments: Any) -> Any:
        """Have a backend compute the gradients."""
        count = len(self.operands)
        operands = arguments[:count]
        if not self.linear:
            run = getattr(choose.implementation(operands[self.chosen_by]), f"{self.name}_backward")
            gradients = run(grad, *self.for_backend(*arguments))
            if isinstance(gradients, Tensor):
                return formats.like(gradients, *operands)
            return tuple(formats.like(g, x) for g, x in zip(gradients, operands, strict=True))
        gradients = self.gradients(grad, operands, arguments[count:-1], arguments[-1])
        return tuple([x.new_empty(0) if g is None else g for g, x in zip(gradients, operands, strict=True)])

    def gradients(
        self, grad: Tensor, operands: Sequence[Tensor], options: Sequence[Any], needs: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Have a backend compute those that are needed, of an operator that is linear; None for the others."""
        backend = choose.implementation(operands[self.chosen_by])
        biases = (None,) * self.bias
        given = self.for_backend(*operands, *biases, *options)[len(operands) + self.bias :]
        gradients: Sequence[Tensor | None] = getattr(backend, f"{self.name}_backward")(
            grad, *operands, *given, tuple(needs)
        )
        if hasattr(backend, FORMATTED):
            return gradients
        result = list(gradients)
        for k in self.followed:
            if (gradient := result[k]) is not None:
                result[k] = formats.like(gradient, operands[k])
        return result

    def empty(self, *arguments: Any) -> Tensor:
        """The output without its values."""
        like: Tensor = arguments[self.chosen_by]
        dtype = like.dtype if self.linear else accumulate_dtype(like.dtype)
        size = self.shape(*arguments)
        last = formats.channels_last(*(arguments[k] for k in self.followed))
        return like.new_empty_strided(size, formats.strides(size, last=last), dtype=dtype)

    def empty_backward(self, grad: Tensor, *arguments: Any) -> Any:
        """The gradients without their values."""
        operands = arguments[: len(self.operands)]
        needs = arguments[-1] if self.linear else [True] * len(operands)
        images = (*self.followed, *(range(len(operands)) if not self.linear else ()))
        gradients = tuple(
            formats.empty(x.shape, x, *((x,) if k in images else ())) if need else x.new_empty(0)
            for k, (x, need) in enumerate(zip(operands, needs, strict=True))
        )
        return gradients if len(gradients) > 1 else gradients[0]

    def register(self) -> None:
        """Define the operator and its backward in `torch.library`."""
        n, tensors = len(self.operands), ", ".join(f"Tensor {operand}" for operand in self.operands)
        bias, needs = ", Tensor? bias" if self.bias else "", f", bool[{n}] needs" if self.linear else ""
        define(f"{self.name}({tensors}{bias}, {self.options}) -> Tensor", self.kernel(), self.empty)
        if self.plain is not None:  # not seen through, as what it computes depends on a value
            schema = f"{self.name}{OR_PLAIN}({tensors}{bias}, Tensor open, {self.options}) -> Tensor"
            define(schema, self.kernel_or_plain(), self.empty, seen_through=False)
        if self.name == "gaussian_kernel2d":  # whose gradient is the distances'
            return
        result = "Tensor" if n == 1 else f"({', '.join(['Tensor'] * n)})"
        backward = f"{self.name}_backward(Tensor grad, {tensors}, {self.options}{needs}) -> {result}"
        define(backward, self.run_backward, self.empty_backward)


def window_of(kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Window:
    """The window of an operator's options, in the order of its schema."""
    (kh, kw), (sy, sx), (py, px), (dy, dx) = kernel_size, stride, padding, dilation
    return Window((kh, kw), (sy, sx), (py, px), (dy, dx))


def _for_distances(guide: Tensor, *window: Ints) -> tuple[Any, ...]:
    return guide, window_of(*window)


def _for_convolution(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *options: Any
) -> tuple[Any, ...]:
    stride, padding, dilation, groups = options
    return input, kernel, weight, bias, window_of(weight.shape[2:], stride, padding, dilation), groups


def _for_pooling(input: Tensor, kernel: Tensor, *sliding: Ints) -> tuple[Any, ...]:
    return input, kernel, window_of(kernel.shape[2:4], *sliding)


def _for_enlargement(one: Tensor, other: Tensor, *where: Any) -> tuple[Any, ...]:
    return one, other, Enlargement(*where)


def _shape_of_distances(guide: Tensor, *options: Ints) -> tuple[int, ...]:
    window, (b, _, height, width) = window_of(*options), guide.shape
    return b, 1, *window.kernel_size, *window.output_size(height, width)


def _shape_of_enlarged_distances(guide: Tensor, coarse: Tensor, *where: Any) -> tuple[int, ...]:
    footprint = Enlargement(*where).footprint
    return guide.shape[0], 1, footprint, footprint, *guide.shape[2:]


def _shape_of_convolution(input: Tensor, kernel: Tensor, weight: Tensor, *_: Any) -> tuple[int, ...]:
    return input.shape[0], weight.shape[0], *kernel.shape[4:]


def _shape_of_transposed(input: Tensor, kernel: Tensor, weight: Tensor, *options: Any) -> tuple[int, ...]:
    *_, groups = options
    return input.shape[0], weight.shape[1] * groups, *kernel.shape[4:]


def _shape_of_sums(input: Tensor, kernel: Tensor, *_: Any) -> tuple[int, ...]:
    return *input.shape[:2], *kernel.shape[4:]


def _conv2d(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, *further: Any
) -> Tensor:
    return F.conv2d(input, weight, bias, stride, padding, *further)


def _conv_transpose2d(input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor:
    *sliding, groups = options
    window = window_of(weight.shape[2:], *sliding)
    least = window.transposed_size(input.shape[2], input.shape[3], (0, 0))
    extra = [n - m for n, m in zip(kernel.shape[4:], least, strict=True)]
    return F.conv_transpose2d(input, weight, bias, window.stride, window.padding, extra, groups, window.dilation)


_CONV = f"{_SLIDING}, int groups"
_CONVOLVED = ("input", "kernel", "weight")
_WEIGHED = ("input", "kernel")

OPERATORS = (
    Operator("squared_distance2d", ("guide",), _WINDOW, _for_distances, _shape_of_distances),
    Operator("gaussian_kernel2d", ("guide",), _WINDOW, _for_distances, _shape_of_distances),
    Operator(
        "pacconv2d",
        _CONVOLVED,
        _CONV,
        _for_convolution,
        _shape_of_convolution,
        linear=True,
        bias=True,
        followed=(0, 2),
        plain=_conv2d,
    ),
    Operator(
        "pacconv_transpose2d",
        _CONVOLVED,
        _CONV,
        _for_convolution,
        _shape_of_transposed,
        linear=True,
        bias=True,
        followed=(0, 2),
        plain=_conv_transpose2d,
    ),
    Operator("pacpool2d", _WEIGHED, _SLIDING, _for_pooling, _shape_of_sums, linear=True, followed=(0,)),
    Operator("resize_distance2d", ("guide", "coarse"), _ENLARGEMENT, _for_enlargement, _shape_of_enlarged_distances),
    Operator("pacresize2d", _WEIGHED, _ENLARGEMENT, _for_enlargement, _shape_of_sums, linear=True, followed=(0,)),
)


def register() -> None:
    """Define all operators."""
    for operator in OPERATORS:
        operator.register()
        if operator.plain is not None:
            define_autocast(operator.name)
            define_autocast(f"{operator.name}{OR_PLAIN}")
