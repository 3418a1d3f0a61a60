"""The convolution of a module: the one whose weight is the module's own, or computed from it.

A forward, and the helpers it calls, may compute others of the same window: with a filter kept in a buffer, say, at
some sizes only. So the module's weight, and all tensors computed from it, are followed through the functions that are
called. In compiled code those that PyTorch lets nobody override (`torch._weight_norm`) cannot be followed: such a
module runs uncompiled.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from hotswap.network.nested import tensors_in

_WEIGHT = "weight"
# Functions that take what their first argument holds, and of the others shape or dtype alone.
_FIRST_ALONE = frozenset({"to", "type_as", "view_as", "reshape_as", "expand_as"})


def own_weight(module: nn.Module) -> Tensor | None:
    """The weight of a convolution that a module may compute in its forward; None where it cannot.

    That is the weight of an `nn.Conv2d`, or the one parameter of four dimensions that a module has itself. One with
    modules inside must have a forward that calls something named conv2d: in most, such a parameter is an embedding.
    """
    if isinstance(module, nn.Conv2d):
        return module.weight
    return _only_weight(module) if not module._modules or _names_conv2d(type(module)) else None


def _only_weight(module: nn.Module) -> Tensor | None:
    weights = [p for p in _parameters(module).values() if p is not None and p.dim() == 4]
    return weights[0] if len(weights) == 1 else None


def _parameters(module: nn.Module) -> dict[str, Tensor | None]:
    copied = module.__dict__.get("_former_parameters")  # of a replica that nn.DataParallel made
    return module._parameters if copied is None else copied  # type: ignore[return-value]


def _names_conv2d(kind: type[nn.Module]) -> bool:
    forwards = [vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base)]
    return any("conv2d" in code.co_names for f in forwards if (code := getattr(f, "__code__", None)) is not None)


class OwnWeight:
    """The weight of a module, and all tensors computed from it in the forward."""

    def __init__(self, module: nn.Module) -> None:
        self._tensors = _stored(module)

    def __contains__(self, x: Tensor) -> bool:
        return any(x is known for known in self._tensors)

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Note a call of a function.

        A result computed from the weight counts as the weight, whole or some channels of it; means and masks do not.
        """
        given = [x for x in tensors_in((args, kwargs)) if x in self]
        if not given:
            return
        name = _name(func)
        if "_like" in name or "new_" in name or (name in _FIRST_ALONE and args[0] not in self):
            return
        written = args[0] if name == "__setitem__" else result
        for x in tensors_in(written):
            whole = any(x.numel() >= source.numel() or x.shape[-2:] == source.shape[-2:] for source in given)
            if whole and x.dtype != torch.bool and x not in self:
                self._tensors.append(x)


def _name(func: Any) -> str:
    return str(getattr(func, "__name__", ""))


_name._dynamo_marked_constant = True  # type: ignore[attr-defined] # Dynamo knows no names of methods


def _stored(module: nn.Module) -> list[Tensor]:
    """The tensors in which a module keeps its weight."""
    if not isinstance(module, nn.Conv2d):
        weight = _only_weight(module)
        return [] if weight is None else [weight]
    if parametrize.is_parametrized(module, _WEIGHT):
        parts = list(module.parametrizations[_WEIGHT].parameters(recurse=False))  # type: ignore[index, union-attr]
        return [*parts, module.weight] if parametrize._cache_enabled else parts  # it may be made already
    parameters = _parameters(module)
    stored = parameters.get(_WEIGHT, module.__dict__.get(_WEIGHT))  # made by a hook, before the forward
    if stored is not None:
        return [stored]
    return [p for name, p in parameters.items() if p is not None and name != "bias"]
