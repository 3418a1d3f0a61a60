"""What each operator takes, which function of a backend computes it, and the shape of what it returns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pac_ops.backends import choose
from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Enlargement
from pac_ops.geometry import Window
from pac_ops.library.calls import define, define_autocast

Ints = Sequence[int]
Tensors = Sequence[Any]
Options = Sequence[Any]

_SLIDING = "int[2] stride, int[2] padding, int[2] dilation"
_WINDOW = f"int[2] kernel_size, {_SLIDING}"
_ENLARGEMENT = "float[]? scale_factor, bool align_corners, int footprint"


@dataclass(frozen=True)
class Operator:
    """`name(operands [, bias], options) -> Tensor`, and `name_backward(grad, operands, options [, needs])`.

    The backward returns a gradient for each operand; where it takes `needs`, of those that are not needed an empty
    tensor, as a schema cannot return None.
    """

    name: str
    operands: tuple[str, ...]
    options: str  # of the schema
    for_backend: Callable[[Tensors, Options], tuple[Any, ...]]  # the options as the backends' functions take them
    shape: Callable[[Tensors, Options], tuple[int, ...]]  # of the output
    chosen_by: int = 0  # the operand whose device and dtype choose the backend
    linear: bool = (
        False  # in each operand: the output has the input's dtype, else sums' dtype; its backward has needs
    )
    bias: bool = False

    def split(self, arguments: Sequence[Any], *, bias: bool = False) -> tuple[Tensors, Options]:
        """Operands (with the bias) and options."""
        count = len(self.operands) + bias
        return arguments[:count], arguments[count:]

    def kernel(self) -> Callable[..., Any]:
        """The function that has a backend compute it."""
        name, chosen_by, for_backend = self.name, self.chosen_by, self.for_backend
        count = len(self.operands) + self.bias

        def run(*arguments: Any) -> Any:
            tensors = arguments[:count]
            compute = getattr(choose.implementation(arguments[chosen_by]), name)
            return compute(*tensors, *for_backend(tensors, arguments[count:]))

        return run

    def run_backward(self, grad: Tensor, *arguments: Any) -> Any:
        """Have a backend compute the gradients."""
        operands, options = self.split(arguments)
        run = getattr(choose.implementation(operands[self.chosen_by]), f"{self.name}_backward")
        if not self.linear:
            return run(grad, *operands, *self.for_backend(operands, options))
        *options, needs = options
        gradients = run(grad, *operands, *self.for_backend(operands, options), tuple(needs))
        return tuple(x.new_empty(0) if g is None else g for g, x in zip(gradients, operands, strict=True))

    def empty(self, *arguments: Any) -> Tensor:
        """The output without its values."""
        tensors, options = self.split(arguments, bias=self.bias)
        like: Tensor = tensors[self.chosen_by]
        dtype = like.dtype if self.linear else accumulate_dtype(like.dtype)
        return like.new_empty(self.shape(tensors, options), dtype=dtype)

    def empty_backward(self, grad: Tensor, *arguments: Any) -> Any:
        """The gradients without their values."""
        operands, options = self.split(arguments)
        needs = options[-1] if self.linear else [True] * len(operands)
        gradients = tuple(x.new_empty(x.shape if need else 0) for x, need in zip(operands, needs, strict=True))
        return gradients if len(gradients) > 1 else gradients[0]

    def register(self) -> None:
        """Define the operator and its backward in `torch.library`."""
        n, tensors = len(self.operands), ", ".join(f"Tensor {operand}" for operand in self.operands)
        bias, needs = ", Tensor? bias" if self.bias else "", f", bool[{n}] needs" if self.linear else ""
        define(f"{self.name}({tensors}{bias}, {self.options}) -> Tensor", self.kernel(), self.empty)
        if self.name == "gaussian_kernel2d":  # whose gradient is the distances'
            return
        result = "Tensor" if n == 1 else f"({', '.join(['Tensor'] * n)})"
        backward = f"{self.name}_backward(Tensor grad, {tensors}, {self.options}{needs}) -> {result}"
        define(backward, self.run_backward, self.empty_backward)


def window_of(kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Window:
    """The window of an operator's options, in the order of its schema."""
    (kh, kw), (sy, sx), (py, px), (dy, dx) = kernel_size, stride, padding, dilation
    return Window((kh, kw), (sy, sx), (py, px), (dy, dx))


def _window(_: Tensors, options: Options) -> tuple[Any, ...]:
    return (window_of(*options),)


def _window_and_clip(_: Tensors, options: Options) -> tuple[Any, ...]:
    return window_of(*options[:4]), options[4]


def _window_of_weight(tensors: Tensors, options: Options) -> tuple[Any, ...]:
    return window_of(tensors[2].shape[2:], *options[:3]), options[3]


def _window_of_kernel(tensors: Tensors, options: Options) -> tuple[Any, ...]:
    return (window_of(tensors[1].shape[2:4], *options),)


def _enlargement(_: Tensors, options: Options) -> tuple[Any, ...]:
    return (Enlargement(*options),)


def _a_tap_and_window(tensors: Tensors, options: Options) -> tuple[int, ...]:
    window, (b, _, height, width) = window_of(*options), tensors[0].shape
    return b, 1, *window.kernel_size, *window.output_size(height, width)


def _a_tap_and_centre(tensors: Tensors, options: Options) -> tuple[int, ...]:
    b, _, ho, wo = tensors[0].shape
    return b, 1, *options[0], ho, wo


def _a_neighbour_and_pixel(tensors: Tensors, options: Options) -> tuple[int, ...]:
    b, _, height, width = tensors[0].shape
    return b, 1, options[-1], options[-1], height, width


def _of_the_weight(tensors: Tensors, _: Options) -> tuple[int, ...]:
    input, kernel, weight, *_ = tensors
    return input.shape[0], weight.shape[0], *kernel.shape[4:]


def _of_the_transposed_weight(tensors: Tensors, options: Options) -> tuple[int, ...]:
    input, kernel, weight, *_ = tensors
    return input.shape[0], weight.shape[1] * options[-1], *kernel.shape[4:]


def _of_the_input(tensors: Tensors, _: Options) -> tuple[int, ...]:
    input, kernel = tensors
    return *input.shape[:2], *kernel.shape[4:]


_CONV = f"{_SLIDING}, int groups"
_CENTRED = f"{_WINDOW}, bool asymmetric"
_CONVOLVED = ("input", "kernel", "weight")
_WEIGHED = ("input", "kernel")

OPERATORS = (
    Operator("squared_distance2d", ("guide",), _WINDOW, _window, _a_tap_and_window),
    Operator("gaussian_kernel2d", ("guide",), _WINDOW, _window, _a_tap_and_window),
    Operator("centred_distance2d", ("centre", "guide"), _CENTRED, _window_and_clip, _a_tap_and_centre, chosen_by=1),
    Operator("pacconv2d", _CONVOLVED, _CONV, _window_of_weight, _of_the_weight, linear=True, bias=True),
    Operator(
        "pacconv_transpose2d", _CONVOLVED, _CONV, _window_of_weight, _of_the_transposed_weight, linear=True, bias=True
    ),
    Operator("pacpool2d", _WEIGHED, _SLIDING, _window_of_kernel, _of_the_input, linear=True),
    Operator("resize_distance2d", ("guide", "coarse"), _ENLARGEMENT, _enlargement, _a_neighbour_and_pixel),
    Operator("pacresize2d", _WEIGHED, _ENLARGEMENT, _enlargement, _of_the_input, linear=True),
)


def register() -> None:
    """Define all operators."""
    for operator in OPERATORS:
        operator.register()
    for name in ("pacconv2d", "pacconv_transpose2d"):
        define_autocast(name)
