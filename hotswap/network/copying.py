"""Deep copies of networks that keep everything, GraphModules included.

`copy.deepcopy` of a `torch.fx.GraphModule` is a new module of the same graph: without hooks, without attributes that
the graph does not name or that its class was given, and, if torchvision made it, in training mode. Here it is copied
as any other module is.

A computed tensor, which `copy.deepcopy` refuses, is copied as a constant: modules that are pruned or normalised by
`torch.nn.utils` hold such a weight, and compute it anew in each call.
"""

import copy
from typing import Any, TypeVar

from torch import nn
from torch.fx import Graph, GraphModule

from hotswap.errors import HotswapError
from hotswap.network.nested import tensors_in

Model = TypeVar("Model", bound=nn.Module)
_GENERATED = "GraphModuleImpl"  # torch's name for the class that it generates for each GraphModule


def deep_copy(model: Model, replaced: dict[int, Any] | None = None) -> Model:
    """A deep copy; `replaced` maps the ids of objects to their stand-ins, like the memo of `copy.deepcopy`.

    Raises:
        Exception: whatever a module does when it is copied.
    """
    return copy.deepcopy(model, _Memo(model, replaced or {}))


def checked_copy(model: Model, replaced: dict[int, Any] | None = None, *, hint: str = "") -> Model:
    """A `deep_copy`, with an error for users.

    Raises:
        HotswapError: where the network cannot be copied, with the reason and `hint`.
    """
    try:
        return deep_copy(model, replaced)
    except Exception as error:  # whatever a user's module does when copied
        raise HotswapError(f"the network cannot be deep-copied ({type(error).__name__}: {error}){hint}") from error


class _Memo(dict[Any, Any]):
    """The memo of `copy.deepcopy`, which it asks for a copy before it makes one."""

    def __init__(self, model: nn.Module, replaced: dict[int, Any]) -> None:
        computed = [x for module in model.modules() for x in tensors_in(vars(module)) if not x.is_leaf]
        super().__init__({id(x): x.detach().clone() for x in computed} | replaced)
        self._uncopied = {id(module): module for module in model.modules() if isinstance(module, GraphModule)}

    def get(self, key: Any, default: Any = None) -> Any:
        module = self._uncopied.pop(key, None)
        if module is not None and key not in self:
            return copied(module, self)
        return super().get(key, default)


def copied(module: GraphModule, memo: dict[int, Any]) -> GraphModule:
    """The `__deepcopy__` of a GraphModule: a copy with hooks, attributes and mode."""
    new: GraphModule = object.__new__(_class_of_its_own(type(module)))
    memo[id(module)] = new
    new.__dict__.update(copy.deepcopy(module.__dict__, memo))
    for graph in graphs(new).values():
        graph.owning_module = new
    return new


def graphs(module: GraphModule) -> dict[str, Graph]:
    """The graphs that a GraphModule holds, by attribute."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Graph)}


def _class_of_its_own(kind: Any) -> Any:
    """A copy of the class that torch generated for a GraphModule: `recompile` writes into it."""
    if not issubclass(kind, GraphModule) or kind.__qualname__.rpartition(".")[2] != _GENERATED:
        return kind
    namespace = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    namespace["__qualname__"] = kind.__qualname__  # not among its vars
    derived: Any = type(kind)(kind.__name__, tuple(_class_of_its_own(base) for base in kind.__bases__), namespace)
    if "_wrapped_call" in namespace:  # which calls the __call__ of the class above one of these
        plain = kind._wrapped_call
        above = next(new for new, old in zip(derived.__mro__, kind.__mro__, strict=True) if old is plain.cls)
        derived._wrapped_call = type(plain)(above, plain.cls_call)
    return derived
