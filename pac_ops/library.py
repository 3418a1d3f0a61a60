"""`torch.library` registration: schema, kernel, fake, autograd and autocast of each operator, in one place.

The autograd functions save and call; the maths is in the backends. The operators are polynomials in their
inputs (`squared_distance2d` is quadratic in the guide, `pacconv2d` linear in each of input, kernel and
weight), so the backward of each backward is written with the operators themselves, and gradients of every
order exist on every backend.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pac_ops import backends
from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Window

_WINDOW = "int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation"
_library = torch.library.Library("pac_ops", "DEF")
_library.define(f"squared_distance2d(Tensor guide, {_WINDOW}) -> Tensor")
_library.define(f"squared_distance2d_backward(Tensor grad, Tensor guide, {_WINDOW}) -> Tensor")
_CONV = "int[2] stride, int[2] padding, int[2] dilation, int groups"
_library.define(f"pacconv2d(Tensor input, Tensor kernel, Tensor weight, Tensor? bias, {_CONV}) -> Tensor")
# A gradient that `needs` leaves out comes back as an empty tensor: a schema cannot return None.
_library.define(
    f"pacconv2d_backward(Tensor grad, Tensor input, Tensor kernel, Tensor weight, {_CONV}, bool[3] needs)"
    " -> (Tensor, Tensor, Tensor)"
)

squared_distance2d = torch.ops.pac_ops.squared_distance2d.default
squared_distance2d_backward = torch.ops.pac_ops.squared_distance2d_backward.default
pacconv2d = torch.ops.pac_ops.pacconv2d.default
pacconv2d_backward = torch.ops.pac_ops.pacconv2d_backward.default

Ints = Sequence[int]


def _window(kernel_size: Ints, stride: Ints, padding: Ints, dilation: Ints) -> Window:
    (kh, kw), (sy, sx), (py, px), (dy, dx) = kernel_size, stride, padding, dilation
    return Window((kh, kw), (sy, sx), (py, px), (dy, dx))


# --- kernels ------------------------------------------------------------------------------------------


def _backend(x: Tensor) -> Any:
    return backends.load(backends.choose(x))


@torch.library.impl(_library, "squared_distance2d", "CompositeExplicitAutograd")
def _squared_distance2d(guide: Tensor, *window: Ints) -> Tensor:
    result: Tensor = _backend(guide).squared_distance2d(guide, _window(*window))
    return result


@torch.library.impl(_library, "squared_distance2d_backward", "CompositeExplicitAutograd")
def _squared_distance2d_backward(grad: Tensor, guide: Tensor, *window: Ints) -> Tensor:
    result: Tensor = _backend(guide).squared_distance2d_backward(grad, guide, _window(*window))
    return result


@torch.library.impl(_library, "pacconv2d", "CompositeExplicitAutograd")
def _pacconv2d(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    window = _window(weight.shape[2:], stride, padding, dilation)
    result: Tensor = _backend(input).pacconv2d(input, kernel, weight, bias, window, groups)
    return result


@torch.library.impl(_library, "pacconv2d_backward", "CompositeExplicitAutograd")
def _pacconv2d_backward(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    window = _window(weight.shape[2:], stride, padding, dilation)
    gradients = _backend(input).pacconv2d_backward(grad, input, kernel, weight, window, groups, tuple(needs))
    like = (input, kernel, weight)
    return tuple(x.new_empty(0) if g is None else g for g, x in zip(gradients, like, strict=True))


# --- shapes without data ------------------------------------------------------------------------------


@torch.library.register_fake("pac_ops::squared_distance2d", lib=_library)
def _squared_distance2d_fake(guide: Tensor, *window: Ints) -> Tensor:
    w = _window(*window)
    b, _, height, width = guide.shape
    size = (b, 1, *w.kernel_size, *w.output_size(height, width))
    return guide.new_empty(size, dtype=accumulate_dtype(guide.dtype))


@torch.library.register_fake("pac_ops::squared_distance2d_backward", lib=_library)
def _squared_distance2d_backward_fake(grad: Tensor, guide: Tensor, *window: Ints) -> Tensor:
    return guide.new_empty(guide.shape)


@torch.library.register_fake("pac_ops::pacconv2d", lib=_library)
def _pacconv2d_fake(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Tensor:
    window = _window(weight.shape[2:], stride, padding, dilation)
    b, _, height, width = input.shape
    return input.new_empty((b, weight.shape[0], *window.output_size(height, width)))


@torch.library.register_fake("pac_ops::pacconv2d_backward", lib=_library)
def _pacconv2d_backward_fake(
    grad: Tensor,
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape if need else 0) for need, x in zip(needs, (input, kernel, weight), strict=True))


# --- autograd -----------------------------------------------------------------------------------------


def _distance_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    guide, *ctx.window = inputs
    ctx.save_for_backward(guide)


def _distance_vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (guide,) = ctx.saved_tensors
    return squared_distance2d_backward(grad, guide, *ctx.window), None, None, None, None


def _distance_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, guide, *ctx.window = inputs
    ctx.save_for_backward(grad, guide)


def _distance_backward_vjp(ctx: Any, vector: Tensor) -> tuple[Any, ...]:
    # The distance is a quadratic form Q(f) and its gradient R(g, f) = 2 sum g_ij (f_i - f_j) is linear in g
    # and in f. <a, R(g, f)> = sum g_ij 2 (f_i - f_j).(a_i - a_j), which polarisation writes with Q alone.
    grad, guide = ctx.saved_tensors
    grad_grad = grad_guide = None
    if ctx.needs_input_grad[0]:
        wide = accumulate_dtype(guide.dtype)
        f, a = guide.to(wide), vector.to(wide)
        grad_grad = squared_distance2d(f + a, *ctx.window) - squared_distance2d(f - a, *ctx.window)
        grad_grad = (grad_grad / 2).to(grad.dtype)
    if ctx.needs_input_grad[1]:
        grad_guide = squared_distance2d_backward(grad, vector, *ctx.window)
    return grad_grad, grad_guide, None, None, None, None


def _conv_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, kernel, weight, _bias, *ctx.window = inputs
    ctx.save_for_backward(input, kernel, weight)


def _conv_vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, kernel, weight = ctx.saved_tensors
    needs_bias = ctx.needs_input_grad[3]
    needs = ctx.needs_input_grad[:3]
    gradients: tuple[Tensor | None, ...] = (None, None, None)
    if any(needs):
        gradients = _conv_gradients(grad, input, kernel, weight, ctx.window, needs)
    grad_bias = grad.sum(dim=(0, 2, 3)) if needs_bias else None
    return *gradients, grad_bias, None, None, None, None


def _conv_gradients(
    grad: Tensor, input: Tensor, kernel: Tensor, weight: Tensor, window: Sequence[Any], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    gradients = pacconv2d_backward(grad, input, kernel, weight, *window, list(needs))
    return tuple(g if need else None for g, need in zip(gradients, needs, strict=True))


def _conv_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    grad, input, kernel, weight, *ctx.window, ctx.needs = inputs
    ctx.save_for_backward(grad, input, kernel, weight)


def _conv_backward_vjp(ctx: Any, *vectors: Tensor) -> tuple[Any, ...]:
    # With F(v, K, W) linear in each and g the incoming gradient, the three outputs are the derivatives of
    # S = <g, F(v, K, W)>. For vectors (a, b, c) against them, the scalar to differentiate is
    # <g, F(a, K, W) + F(v, b, W) + F(v, K, c)>: the same operator with one argument replaced, three times.
    grad, input, kernel, weight = ctx.saved_tensors
    operands = (input, kernel, weight)
    wanted = ctx.needs_input_grad[:4]
    totals: list[Tensor | None] = [None, None, None, None]

    def accumulate(slot: int, value: Tensor | None) -> None:
        if value is not None:
            total = totals[slot]
            totals[slot] = value if total is None else total + value

    for slot, (vector, given) in enumerate(zip(vectors, ctx.needs, strict=True)):
        if not given:
            continue
        v, k_ij, w = (vector if k == slot else x for k, x in enumerate(operands))
        if wanted[0]:
            accumulate(0, pacconv2d(v, k_ij, w, None, *ctx.window))
        needs = [k != slot and wanted[k + 1] for k in range(3)]
        if any(needs):
            for k, value in enumerate(_conv_gradients(grad, v, k_ij, w, ctx.window, needs)):
                accumulate(k + 1, value)
    return *totals, None, None, None, None, None


for _name, _vjp, _setup in (
    ("squared_distance2d", _distance_vjp, _distance_setup),
    ("squared_distance2d_backward", _distance_backward_vjp, _distance_backward_setup),
    ("pacconv2d", _conv_vjp, _conv_setup),
    ("pacconv2d_backward", _conv_backward_vjp, _conv_backward_setup),
):
    torch.library.register_autograd(f"pac_ops::{_name}", _vjp, setup_context=_setup, lib=_library)


# --- autocast: input, weight and bias as the stock convolution's; K stays float32 -----------------------


def _register_autocast(device_type: str, key: str) -> None:
    def narrow(x: Tensor | None) -> Tensor | None:
        if x is None or not x.is_floating_point() or x.dtype == torch.float64:
            return x
        return x.to(torch.get_autocast_dtype(device_type))

    def pacconv2d_autocast(input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Any:
        with torch.autocast(device_type, enabled=False):
            return pacconv2d(narrow(input), kernel, narrow(weight), narrow(bias), *window)

    _library.impl("pacconv2d", pacconv2d_autocast, key)


for _device, _key in (
    ("cpu", "AutocastCPU"),
    ("cuda", "AutocastCUDA"),
    ("xpu", "AutocastXPU"),
    ("mps", "AutocastMPS"),
):
    _register_autocast(_device, _key)
