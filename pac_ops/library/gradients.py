"""The derivatives of the operators, written with the operators."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pac_ops.dtypes import accumulate_dtype
from pac_ops.library.calls import call_of, define_gradient
from pac_ops.library.operators import OPERATORS, Operator


def register() -> None:
    """Define the derivatives of all operators."""
    for operator in OPERATORS:
        if operator.linear:
            _register_linear(operator)
        elif operator.name in ("squared_distance2d", "resize_distance2d"):
            _register_quadratic(operator)
    _register_gaussian()


def _save(ctx: Any, *tensors: Tensor) -> None:
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _refuse_forward_mode(*_: Any) -> Any:
    raise NotImplementedError(
        "pac_ops has no forward mode of gradients: call jacrev(jacrev(f)) in place of torch.func.hessian(f)"
    )


def _no_gradients(options: Sequence[Any]) -> tuple[None, ...]:
    return (None,) * len(options)


def _or_zeros(tangents: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(x) if t is None else t for t, x in zip(tangents, like, strict=True)]


def _total(*terms: Tensor | None) -> Tensor | None:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


# --- the operators that are linear in each of their operands --------------------------------------


def _register_linear(operator: Operator) -> None:
    """F(x_1, ..., x_n[, bias], *options), linear in each x."""
    operands, bias = len(operator.operands), operator.bias
    run, run_backward = call_of(operator.name), call_of(f"{operator.name}_backward")
    biases = (None,) * bias

    def gradients(
        grad: Tensor, xs: Sequence[Tensor], options: Sequence[Any], needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        if not any(needs):
            return (None,) * operands
        values = run_backward(grad, *xs, *options, list(needs))
        return tuple(value if need else None for value, need in zip(values, needs, strict=True))

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs[:operands])
        ctx.out_shape = output.shape
        ctx.options = inputs[operands + bias :]

    def vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        of_operands = gradients(grad, ctx.saved_tensors, ctx.options, ctx.needs_input_grad[:operands])
        of_bias = [grad.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[operands] else None] if bias else []
        return *of_operands, *of_bias, *_no_gradients(ctx.options)

    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        xs = ctx.saved_tensors
        terms = [
            None if t is None else run(*(t if k == slot else x for k, x in enumerate(xs)), *biases, *ctx.options)
            for slot, t in enumerate(tangents[:operands])
        ]
        if bias and tangents[operands] is not None:
            terms.append(tangents[operands][:, None, None].expand(ctx.out_shape))
        return _total(*terms)

    def backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[: operands + 1])
        *ctx.options, ctx.needs = inputs[operands + 1 :]

    def backward_vjp(ctx: Any, *vectors: Tensor) -> tuple[Any, ...]:
        # With g the incoming gradient, the outputs are the derivatives of S = <g, F(x_1, ..., x_n)>. For vectors a_k
        # against them, the scalar to differentiate is <g, sum_k F(..., a_k in x_k's place, ...)>: the same operator
        # with one operand replaced, n times.
        grad, *xs = ctx.saved_tensors
        of_grad, *of_operands = ctx.needs_input_grad[: operands + 1]
        totals: list[Tensor | None] = [None] * (operands + 1)
        for slot, (vector, given) in enumerate(zip(vectors, ctx.needs, strict=True)):
            if not given:
                continue
            replaced = [vector if k == slot else x for k, x in enumerate(xs)]
            along = run(*replaced, *biases, *ctx.options) if of_grad else None
            needs = [k != slot and needed for k, needed in enumerate(of_operands)]
            terms = (along, *gradients(grad, replaced, ctx.options, needs))
            totals = [_total(*pair) for pair in zip(totals, terms, strict=True)]
        return *totals, *_no_gradients(ctx.options), None

    with_bias = (2, 3) if bias else ()
    define_gradient(operator.name, setup, vjp, jvp, without_batch=with_bias)
    define_gradient(
        f"{operator.name}_backward",
        backward_setup,
        backward_vjp,
        _refuse_forward_mode,
        without_batch=(3,) if bias else (),
    )


# --- distances: quadratic in the guides ------------------------------------------------------------


def _slope(
    run: Callable[..., Tensor], xs: Sequence[Tensor], along: Sequence[Tensor], options: Sequence[Any]
) -> Tensor:
    """The derivative of a quadratic form Q at x along a, by polarisation: (Q(x + a) - Q(x - a)) / 2."""
    wide = accumulate_dtype(xs[0].dtype)
    pairs = [(x.to(wide), a.to(wide)) for x, a in zip(xs, along, strict=True)]
    return (run(*(x + a for x, a in pairs), *options) - run(*(x - a for x, a in pairs), *options)) / 2


def _register_quadratic(operator: Operator) -> None:
    """Q(x), quadratic in all its operands together, and its gradient R(g, x), linear in g and in x."""
    operands = len(operator.operands)
    run, run_backward = call_of(operator.name), call_of(f"{operator.name}_backward")

    def gradients(grad: Tensor, xs: Sequence[Tensor], options: Sequence[Any]) -> Sequence[Tensor]:
        values = run_backward(grad, *xs, *options)
        return values if operands > 1 else (values,)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, *inputs[:operands])
        ctx.options = inputs[operands:]

    def vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *gradients(grad, ctx.saved_tensors, ctx.options), *_no_gradients(ctx.options)

    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        xs = ctx.saved_tensors
        return _slope(run, xs, _or_zeros(tangents[:operands], xs), ctx.options)

    def backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[: operands + 1])
        ctx.options = inputs[operands + 1 :]

    def backward_vjp(ctx: Any, *vectors: Tensor) -> tuple[Any, ...]:
        # <a, R(g, x)> = <g, the slope of Q at x along a>, and that slope is symmetric in x and a.
        grad, *xs = ctx.saved_tensors
        of_grad, *of_operands = ctx.needs_input_grad[: operands + 1]
        slope = _slope(run, xs, vectors, ctx.options).to(grad.dtype) if of_grad else None
        values = gradients(grad, vectors, ctx.options) if any(of_operands) else (None,) * operands
        return slope, *values, *_no_gradients(ctx.options)

    define_gradient(operator.name, setup, vjp, jvp)
    define_gradient(f"{operator.name}_backward", backward_setup, backward_vjp, _refuse_forward_mode)


def _register_gaussian() -> None:
    """K = exp(-Q / 2), whose derivatives are those of the distance Q, times -K / 2."""
    distance, distance_backward = call_of("squared_distance2d"), call_of("squared_distance2d_backward")

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        guide, *ctx.options = inputs
        _save(ctx, guide, output)

    def vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        guide, kernel = ctx.saved_tensors
        return distance_backward(-0.5 * kernel * grad, guide, *ctx.options), *_no_gradients(ctx.options)

    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        guide, kernel = ctx.saved_tensors
        slope: Tensor = -0.5 * kernel * _slope(distance, (guide,), (tangent,), ctx.options)
        return slope

    define_gradient("gaussian_kernel2d", setup, vjp, jvp)
