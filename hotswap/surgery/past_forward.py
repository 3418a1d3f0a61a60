"""Refuses guided calls of `F.interpolate` that are reached past the forward that guides them.

Another method of their module can make them when a user calls it, and so can the forward of a module whose code is
in the graph of one around it: nothing is handed over then, and no graph run.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from hotswap.errors import HotswapError
from hotswap.network.derived import restore, subclass
from hotswap.surgery.input_checks import own_methods
from hotswap.targets.call_sites import begun, is_end_of, key_here, key_traced

Names = Mapping[str, str]  # of guided calls, by the keys of their chains


NAMES = "_hotswap_guided_calls"  # of a module with guided calls, a plain attribute: `Names`


def refuse(module: nn.Module, names: Names, *, forward: bool) -> None:
    """Have a module's methods refuse to make guided calls, in place. Undone by `allow`.

    Args:
        module: the module.
        names: the guided calls.
        forward: include `forward`, where that of a module around it has its code.
    """
    module.__dict__[NAMES] = names
    plain: Any = type(module)
    module.__class__ = _refusing_class(plain, forward)


def allow(root: nn.Module) -> None:
    """Undo `refuse` in a module and all modules inside."""
    for module in root.modules():
        if restore(module, _refusing_class):
            del module.__dict__[NAMES]


@functools.cache
def _refusing_class(plain: Any, forward: bool) -> Any:
    methods = refusing(plain, _never)
    if forward:
        methods["forward"] = _refusing("forward", plain.forward, plain, _never)
    return subclass(plain, (_refusing_class, plain, forward), **methods)


def _never(_module: nn.Module) -> bool:
    """A graph has the code of all methods, and calls none."""
    return False


def refusing(kind: type[nn.Module], guided: Callable[[nn.Module], bool]) -> dict[str, Any]:
    """A class's own methods but `forward`, refusing to make guided calls.

    Args:
        kind: the class.
        guided: whether a module's forward is running, so that its calls are guided.
    """
    methods = {name: m for name, m in own_methods(kind).items() if not inspect.isgeneratorfunction(m)}
    return {name: _refusing(name, method, kind, guided) for name, method in methods.items()}


def _refusing(
    name: str, method: Callable[..., Any], kind: type[nn.Module], guided: Callable[[nn.Module], bool]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def entered(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        names: Names | None = self.__dict__.get(NAMES)
        if names is None or guided(self):
            return method(self, *args, **kwargs)
        with _PastForward(names, f"{kind.__name__}.{name}"):
            return begun(method, self, *args, **kwargs)

    return entered


class _PastForward(TorchFunctionMode):
    def __init__(self, names: Names, method: str) -> None:
        super().__init__()
        self.names, self.method = names, method

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.interpolate:
            key = key_traced() if torch.compiler.is_dynamo_compiling() else key_here()
            for other, name in self.names.items():
                if is_end_of(key, other):
                    around = "network" if self.method.endswith(".forward") else "module"
                    raise HotswapError(
                        f"target {name} is guided in its {around}'s forward, and {self.method} calls it past that; "
                        f"call the {around} itself, or hotswap.revert it"
                    )
        return func(*args, **(kwargs or {}))
