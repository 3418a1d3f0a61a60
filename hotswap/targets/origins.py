"""The origins of tensors within one forward: its arguments, and the outputs of modules that it calls.

It tells the turns of a loop apart, `for f in features: f = F.interpolate(f, size)`, however many there are at a size.
Functions that only change a tensor's size leave its origins as they are: many are called at odd sizes only.
"""

import weakref
from typing import Any

from torch import Tensor

from hotswap.network.nested import tensors_in

# Attribute getters are not among them: shapes are no tensors.
_RESIZING = {
    "interpolate",
    "pad",
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "getitem",
    "contiguous",
    "to",
    "float",
}


class Origins:
    """The origins of the tensors in one call of a forward."""

    def __init__(self, args: Any, kwargs: Any) -> None:
        self._of: dict[int, tuple[weakref.ref[Tensor], frozenset[str]]] = {}
        self._depth = 0  # of calls of modules that are going on
        for index, x in enumerate(tensors_in((args, kwargs))):
            self._set(x, {f"argument {index}"})

    def of(self, x: Any) -> frozenset[str]:
        """The origins of a tensor; none where they are not known."""
        reference, origins = self._of.get(id(x), (None, frozenset[str]()))
        return origins if reference is not None and reference() is x else frozenset()

    def enter(self) -> None:
        """Note that a module is called."""
        self._depth += 1

    def leave(self, name: str, args: Any, output: Any) -> None:
        """Note that it returns, or raises. `name` is its path from the module whose forward this is."""
        self._depth -= 1
        if self._depth == 0:
            given = {origin.partition(" of ")[0] for x in tensors_in(args) for origin in self.of(x)}
            behind = f" of {', '.join(sorted(given))}" if given else ""
            for index, x in enumerate(tensors_in(output)):
                self._set(x, {f"{name}[{index}]{behind}"})

    def follow(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Note a call of a function, by the forward itself or by a module."""
        if self._depth or not isinstance(result, Tensor | tuple | list):
            return
        name = str(getattr(func, "__name__", "")).strip("_")
        origins = {origin for x in tensors_in((args, kwargs)) for origin in self.of(x)}
        origins |= set() if name in _RESIZING else {f"{name}()"}
        for x in tensors_in(result):
            self._set(x, origins)

    def _set(self, x: Tensor, origins: set[str]) -> None:
        self._of[id(x)] = (weakref.ref(x), frozenset(origins))
