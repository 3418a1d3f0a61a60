"""What networks give, however nested: run, compared, differentiated."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.networks import Inputs


def run(model: nn.Module, inputs: Inputs, *, gradients: bool = False) -> Any:
    """The network's output; random numbers it draws are the same each time."""
    torch.manual_seed(2)
    with torch.set_grad_enabled(gradients):
        return model(*inputs)


def tensors(output: Any) -> list[Tensor]:
    """Every floating-point tensor of an output, however nested."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() and output.numel() else []
    if isinstance(output, Mapping):
        return [x for value in output.values() for x in tensors(value)]
    if isinstance(output, list | tuple):
        return [x for value in output for x in tensors(value)]
    if is_dataclass(output):
        return [x for f in fields(output) for x in tensors(getattr(output, f.name))]
    return []


def difference(a: Any, b: Any) -> float:
    """The largest relative difference of norms over all tensors of two outputs."""
    pairs = [(x.detach(), y.detach()) for x, y in zip(tensors(a), tensors(b), strict=True)]
    if any(x.shape != y.shape for x, y in pairs):
        return math.inf
    return max(float((x - y).double().norm() / (y.double().norm() + 1e-12)) for x, y in pairs)


def same(a: Any, b: Any) -> bool:
    """Whether all tensors of two outputs are equal, bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def in_float64(swapped: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A copy of a network in float64, and what it is fed."""
    return copy.deepcopy(swapped).double(), tuple(_double(x) for x in inputs)


def _double(x: Any) -> Any:
    if isinstance(x, list):
        return [_double(item) for item in x]
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def has_gradient(output: Any) -> bool:
    """Whether anything in an output was computed from something that wants a gradient."""
    return any(x.requires_grad for x in tensors(output))


def gradients(output: Any, sources: Sequence[Any]) -> Sequence[Tensor | None]:
    """Of a sum over all of an output, to each of the sources; None where it does not depend on one."""
    loss = sum(_weighted_sum(x) for x in tensors(output) if x.requires_grad)
    assert isinstance(loss, Tensor)
    return torch.autograd.grad(loss, sources, allow_unused=True)


def _weighted_sum(x: Tensor) -> Tensor:
    """A sum that norms and softmax do not make constant."""
    return (x * torch.linspace(-1, 1, x.numel()).to(x).sin().view(x.shape)).sum() + x.square().sum() / x.numel()
