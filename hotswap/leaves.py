"""What is not to be traced into: modules and functions that torch.fx keeps as a single step."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from hotswap.errors import HotswapError

Leaf = TypeVar("Leaf", bound=type[nn.Module] | Callable[..., Any])

_MODULES: list[type[nn.Module]] = []
_FUNCTIONS: list[Callable[..., Any]] = []


def register_leaf(leaf: Leaf) -> Leaf:
    """Keep torch.fx out of a class of modules, or a function: its code then may depend on the values it gets.

    A target or guide inside such a module is reached by hooks. Returns the argument, so it can decorate.

    Raises:
        HotswapError: where it is neither.
    """
    if isinstance(leaf, type) and issubclass(leaf, nn.Module):
        _MODULES.append(leaf)
    elif callable(leaf) and not isinstance(leaf, type | nn.Module):
        _FUNCTIONS.append(leaf)
    else:
        raise HotswapError(f"leaf must be a subclass of torch.nn.Module or a function, got {leaf!r}")
    return leaf


def leaf_modules() -> tuple[type[nn.Module], ...]:
    """Those registered. Not timm's: a module on the way to a target is worth trying, and any other stays closed."""
    return tuple(_MODULES)


def leaf_functions() -> tuple[Callable[..., Any], ...]:
    """Those registered here, and with timm where that is loaded."""
    timm: Any = sys.modules.get("timm.layers")
    of_timm = [] if timm is None else timm.get_notrace_functions()
    return (*_FUNCTIONS, *(function for function in of_timm if callable(function)))
