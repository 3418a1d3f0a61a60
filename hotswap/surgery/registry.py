"""What users register for the tracer: modules and functions kept as single steps, arguments fixed at one value."""

import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from hotswap.errors import HotswapError
from hotswap.network.names import closest

Constant = bool | int | float | str | None
Leaf = TypeVar("Leaf", bound=type[nn.Module] | Callable[..., Any])

_MODULES: list[type[nn.Module]] = []
_FUNCTIONS: list[Callable[..., Any]] = []
_ARGUMENTS: dict[type[nn.Module], dict[str, Constant]] = {}


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
    """Registered classes of modules. Not timm's: any on the way to a target is worth trying, others stay closed."""
    return tuple(_MODULES)


def leaf_functions() -> tuple[Callable[..., Any], ...]:
    """Functions registered here, and with timm where it is loaded. From 1.0.17 on, timm.layers has its list too."""
    timm: Any = sys.modules.get("timm.models")
    of_timm = [] if timm is None else timm.get_notrace_functions()
    return (*_FUNCTIONS, *(function for function in of_timm if callable(function)))


def register_concrete_args(kind: type[nn.Module], **values: Constant) -> None:
    """Rewrite the forward of a class of modules for these values of arguments, instead of their defaults.

    Code that branches on them becomes one straight graph. The rewritten forward refuses a call with other values.

    Args:
        kind: the class whose forward is rewritten (a note of the plan names it), or a base of it.
        values: by the argument's name: None, a bool, a number or a string.

    Raises:
        HotswapError: where it is no class of modules, its forward has no such argument, or a value is no constant.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise HotswapError(f"kind must be a subclass of torch.nn.Module, got {kind!r}")
    known = list(inspect.signature(kind.forward).parameters)[1:]
    for name, value in values.items():
        if name not in known:
            hint = closest(name, known)
            raise HotswapError(f"{kind.__name__}.forward has no argument {name!r}{hint}; it has {', '.join(known)}")
        if not isinstance(value, Constant):
            raise HotswapError(f"{name} must be None, a bool, a number or a string, got a {type(value).__name__}")
    _ARGUMENTS.setdefault(kind, {}).update(values)


def fixed_arguments(module: nn.Module) -> dict[str, Constant]:
    """The values registered for a module's forward; those of its own class win over those of a base."""
    fixed: dict[str, Constant] = {}
    for kind in reversed(type(module).__mro__):
        fixed |= _ARGUMENTS.get(kind, {})
    return fixed
