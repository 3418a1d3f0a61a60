"""`torch.vmap` for operators on [B, ...] tensors: the mapped dimension is folded into the batch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def rule(operator: Callable[..., Any], shared: Sequence[int]) -> Callable[..., tuple[Any, Any]]:
    """The vmap rule of an operator whose tensors and results begin with the batch, but for a weight and a bias.

    These are at the positions `shared`. Where one of them is mapped over, or its gradient is needed (the last
    argument is then `needs`), there is a call for every sample.
    """

    def vmap(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        if any(_mapped(arguments[k], in_dims[k]) or _gradient_asked_for(arguments, k) for k in shared):
            return _one_by_one(operator, info.batch_size, in_dims, arguments)
        folded = [
            _fold(x, dim, info.batch_size) if isinstance(x, Tensor) and k not in shared else x
            for k, (x, dim) in enumerate(zip(arguments, in_dims, strict=True))
        ]
        out = operator(*folded)
        if isinstance(out, Tensor):
            return _unfold(out, info.batch_size), 0
        return tuple(_unfold(x, info.batch_size) for x in out), (0,) * len(out)

    return vmap


def _mapped(x: Any, dim: Any) -> bool:
    """Whether an argument is mapped over; of a list, `dim` is a list of None."""
    return isinstance(x, Tensor) and dim is not None


def _gradient_asked_for(arguments: tuple[Any, ...], shared: int) -> bool:
    """Whether this is a backward operator (grad, operands ..., needs) that must return the operand's gradient."""
    needs = arguments[-1]
    return isinstance(needs, (list, tuple)) and bool(needs[shared - 1])


def _fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    moved = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return moved.flatten(0, 1)


def _unfold(x: Tensor, size: int) -> Tensor:
    if x.dim() == 1:  # a gradient that was not asked for, empty
        return x.expand(size, 0)
    return x.reshape(size, x.shape[0] // size, *x.shape[1:])


def _one_by_one(
    operator: Callable[..., Any], size: int, in_dims: tuple[int | None, ...], arguments: tuple[Any, ...]
) -> tuple[Any, Any]:
    results = [
        operator(*(x.select(dim, n) if _mapped(x, dim) else x for x, dim in zip(arguments, in_dims, strict=True)))
        for n in range(size)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])
