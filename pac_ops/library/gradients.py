"""The derivatives of the operators, written with the operators."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, is_grad_enabled

from pac_ops.dtypes import accumulate_dtype
from pac_ops.library.calls import Kept, call_of, define_gradient
from pac_ops.library.observers import unwatched
from pac_ops.library.operators import OPERATORS, OR_PLAIN, Operator


def register() -> None:
    """Define the derivatives of all operators."""
    for operator in OPERATORS:
        if operator.linear:
            _register_linear(operator)
        elif operator.name in ("squared_distance2d", "resize_distance2d"):
            _register_quadratic(operator)
    _register_gaussian()


def _keeping(tensors: int, others: int = 0) -> Kept:
    """Keep the first arguments, and, after some others, the options."""

    def kept(inputs: tuple[Any, ...], _: Any) -> tuple[Sequence[Tensor], Sequence[Any]]:
        return inputs[:tensors], inputs[tensors + others :]

    return kept


def _refuse_forward_mode(*_: Any) -> Any:
    raise NotImplementedError(
        "pac_ops has no forward mode of gradients: call jacrev(jacrev(f)) in place of torch.func.hessian(f)"
    )


def _no_gradients(options: Sequence[Any]) -> tuple[None, ...]:
    return (None,) * len(options)


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
        if not is_grad_enabled() and unwatched((grad, *xs)):  # at once, as most backward passes are
            return tuple(operator.gradients(grad, xs, options, needs))
        values = run_backward(grad, *xs, *options, list(needs))
        return tuple(value if need else None for value, need in zip(values, needs, strict=True))

    def vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        needs = ctx.needs_input_grad
        of_operands = gradients(grad, ctx.saved_tensors, ctx.options, needs[:operands])
        of_bias = [grad.sum((0, 2, 3)) if needs[operands] else None] if bias else []
        return *of_operands, *of_bias, *_no_gradients(ctx.options)

    def jvp(ctx: Any, *tangents: Any) -> Tensor | None:
        xs = ctx.saved_tensors
        terms = [
            None if t is None else run(*(t if k == slot else x for k, x in enumerate(xs)), *biases, *ctx.options)
            for slot, t in enumerate(tangents[:operands])
        ]
        if bias and tangents[operands] is not None:
            terms.append(tangents[operands][:, None, None].expand(xs[0].shape[0], -1, *xs[1].shape[4:]))
        return _total(*terms)

    def backward_vjp(ctx: Any, *vectors: Tensor) -> tuple[Any, ...]:
        # With g the incoming gradient, the outputs are the derivatives of S = <g, F(x_1, ..., x_n)>. For vectors a_k
        # against them, the scalar to differentiate is <g, sum_k F(..., a_k in x_k's place, ...)>: the same operator
        # with one operand replaced, n times.
        (grad, *xs), (*options, given) = ctx.saved_tensors, ctx.options
        of_grad, *of_operands = ctx.needs_input_grad[: operands + 1]
        totals: list[Tensor | None] = [None] * (operands + 1)
        for slot, vector in enumerate(vectors):
            if not given[slot]:
                continue
            replaced = [vector if k == slot else x for k, x in enumerate(xs)]
            along = run(*replaced, *biases, *options) if of_grad else None
            needs = [k != slot and needed for k, needed in enumerate(of_operands)]
            terms = (along, *gradients(grad, replaced, options, needs))
            totals = [_total(*pair) for pair in zip(totals, terms, strict=True)]
        return *totals, *_no_gradients(ctx.options)

    shared, shared_backward = ((2, 3), (3,)) if bias else ((), ())  # a weight, a bias
    define_gradient(operator.name, _keeping(operands, others=bias), vjp, jvp, shared)
    if operator.plain is not None:  # the same numbers, up to rounding, and so the same derivatives

        def vjp_or_plain(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            of_tensors = vjp(ctx, grad)
            return *of_tensors[: operands + bias], None, *of_tensors[operands + bias :]

        kept = _keeping(operands, others=bias + 1)
        define_gradient(f"{operator.name}{OR_PLAIN}", kept, vjp_or_plain, jvp, (*shared, operands + bias))
    kept = _keeping(operands + 1)
    define_gradient(f"{operator.name}_backward", kept, backward_vjp, _refuse_forward_mode, shared_backward)


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

    def vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *gradients(grad, ctx.saved_tensors, ctx.options), *_no_gradients(ctx.options)

    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        xs = ctx.saved_tensors
        along = [torch.zeros_like(x) if t is None else t for t, x in zip(tangents[:operands], xs, strict=True)]
        return _slope(run, xs, along, ctx.options)

    def backward_vjp(ctx: Any, *vectors: Tensor) -> tuple[Any, ...]:
        # <a, R(g, x)> = <g, the slope of Q at x along a>, and that slope is symmetric in x and a.
        grad, *xs = ctx.saved_tensors
        of_grad, *of_operands = ctx.needs_input_grad[: operands + 1]
        slope = _slope(run, xs, vectors, ctx.options).to(grad.dtype) if of_grad else None
        values = gradients(grad, vectors, ctx.options) if any(of_operands) else (None,) * operands
        return slope, *values, *_no_gradients(ctx.options)

    define_gradient(operator.name, _keeping(operands), vjp, jvp)
    define_gradient(f"{operator.name}_backward", _keeping(operands + 1), backward_vjp, _refuse_forward_mode)


def _register_gaussian() -> None:
    """K = exp(-Q / 2), whose derivatives are those of the distance Q, times -K / 2."""
    distance, distance_backward = call_of("squared_distance2d"), call_of("squared_distance2d_backward")

    def kept(inputs: tuple[Any, ...], output: Tensor) -> tuple[Sequence[Tensor], Sequence[Any]]:
        guide, *options = inputs
        return (guide, output), options

    def vjp(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        guide, kernel = ctx.saved_tensors
        return distance_backward(-0.5 * kernel * grad, guide, *ctx.options), *_no_gradients(ctx.options)

    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        guide, kernel = ctx.saved_tensors
        slope: Tensor = -0.5 * kernel * _slope(distance, (guide,), (tangent,), ctx.options)
        return slope

    define_gradient("gaussian_kernel2d", kept, vjp, jvp)
