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
from hotswap.surgery.input_checks import own_methods
from hotswap.targets.call_sites import begun, is_end_of, key_here, key_traced

Names = Mapping[str, str]  # of guided calls, by the keys of their chains


def refusing(
    kind: type[nn.Module], names: Names, guided: Callable[[nn.Module], bool], *, forward: bool = False
) -> dict[str, Any]:
    """A class's own methods, refusing to make guided calls.

    Args:
        kind: the class.
        names: the guided calls.
        guided: whether a module's forward is running, so that its calls are guided.
        forward: include `forward`, where that of a module around it has its code.
    """
    methods = {name: m for name, m in own_methods(kind).items() if not inspect.isgeneratorfunction(m)}
    if forward:
        methods["forward"] = kind.forward
    return {name: _refusing(kind, name, method, names, guided) for name, method in methods.items()}


def _refusing(
    kind: type[nn.Module], name: str, method: Callable[..., Any], names: Names, guided: Callable[[nn.Module], bool]
) -> Callable[..., Any]:
    @functools.wraps(method)
    def entered(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if guided(self):
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
