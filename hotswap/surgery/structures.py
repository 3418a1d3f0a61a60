"""Values in tuples, lists and dicts: what modules are called with and return."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Node

Place = tuple[int | str, ...]  # of a value: the keys that lead to it
_CONSTANTS = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.Size, torch.layout)


class UnknownStructureError(Exception):
    """A value is neither a tuple, list or dict nor a plain constant."""


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Node]]:
    """Nodes in a value, with their places."""
    if isinstance(value, Node):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*place, key))
    elif isinstance(value, list | tuple) and not isinstance(value, torch.Size):
        for index, item in enumerate(value):
            yield from leaves(item, (*place, index))


def rebuilt(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """A value rebuilt with `leaf(x)` in place of each x that is neither a container nor a constant.

    Raises:
        UnknownStructureError: where it is no value of these kinds.
    """
    if isinstance(value, _CONSTANTS):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(rebuilt(item, leaf) for item in value))
    if type(value) in (list, tuple):
        return type(value)(rebuilt(item, leaf) for item in value)
    if type(value) in (dict, OrderedDict):
        return type(value)((key, rebuilt(item, leaf)) for key, item in value.items())
    return leaf(value)
