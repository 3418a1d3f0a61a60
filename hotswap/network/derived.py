"""Subclasses that the modules of a swapped network become instances of.

There is one for each plain class, and what belongs to one network lies in the instance: so networks that are swapped
alike have the same classes, and their modules are pickled, copied and built anew like any other.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

_MADE_BY = "_hotswap_made_by"  # of a class: the function that makes it, and its arguments


def subclass(
    plain: type[nn.Module], made_by: tuple[Callable[..., Any], *tuple[Any, ...]], **methods: Callable[..., Any]
) -> type[nn.Module]:
    """A class by the name of another one, with some methods of its own. A new instance is one of `plain`.

    Args:
        plain: the class.
        made_by: a function that can be imported, and its arguments: what a pickled instance gets its class from.
        methods: by name.
    """

    @functools.wraps(plain.__init__)
    def initialise(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        self.__class__ = plain
        plain.__init__(self, *args, **kwargs)

    named = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    generated: type[nn.Module] = derived(plain.__name__, (plain,), made_by, **named, **methods, __init__=initialise)
    return generated


def derived(name: str, bases: tuple[Any, ...], made_by: tuple[Any, ...], **namespace: Any) -> Any:
    """A class whose instances can be pickled; see `subclass`."""
    if all(base.__reduce_ex__ in (object.__reduce_ex__, reduced) for base in bases):
        namespace["__reduce_ex__"] = reduced
    metaclass: Any = type(bases[-1])
    return metaclass(name, bases, namespace | {_MADE_BY: made_by})


def restore(module: nn.Module, maker: Callable[..., Any]) -> bool:
    """Give a module the class that its own was made of by `maker`, in place; returns whether it was."""
    generated = next((kind for kind in type(module).__mro__ if vars(kind).get(_MADE_BY, (None,))[0] is maker), None)
    if generated is not None:
        module.__class__ = generated.__bases__[0]
    return generated is not None


def reduced(self: Any, protocol: int) -> Any:
    """For pickle and copy: an instance without its `__init__`, and its attributes."""
    kind = type(self)
    if _MADE_BY not in vars(kind):  # made of ours by others
        return object.__reduce_ex__(self, protocol)
    return _instance, (_description(kind),), self.__getstate__()


def _description(kind: Any) -> Any:
    """A class as pickle can store it."""
    if _MADE_BY not in vars(kind):
        return kind
    maker, *arguments = vars(kind)[_MADE_BY]
    return (maker, *(_description(x) if isinstance(x, type) else x for x in arguments))


def _made(description: Any) -> Any:
    if not isinstance(description, tuple):
        return description
    maker, *arguments = description
    return maker(*map(_made, arguments))


def _instance(description: Any) -> Any:
    kind = _made(description)
    return kind.__new__(kind)
