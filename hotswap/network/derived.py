"""Subclasses whose instances the modules of a swapped network become.

There is one for each plain class, and the instance holds all that belongs to one network. So networks that are
swapped alike have the same classes, and their modules are pickled, copied and built anew like any other.
"""

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

_MADE_BY = "_hotswap_made_by"  # of a class: the function that makes it, and its arguments


def subclass(
    plain: type[nn.Module], made_by: tuple[Callable[..., Any], *tuple[Any, ...]], **methods: Callable[..., Any]
) -> type[nn.Module]:
    """A subclass with the name of `plain`; a call of it makes an instance of `plain`.

    Args:
        plain: the class.
        made_by: an importable function, and its arguments, that give this subclass: stored with pickled instances.
        methods: of the subclass, by name.
    """

    @functools.wraps(plain.__init__)
    def initialise(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        self.__class__ = plain
        plain.__init__(self, *args, **kwargs)

    named = {name: getattr(plain, name) for name in ("__module__", "__qualname__", "__doc__")}
    kind: type[nn.Module] = derived(plain.__name__, (plain,), made_by, **named, **methods, __init__=initialise)
    return kind


def derived(name: str, bases: tuple[Any, ...], made_by: tuple[Any, ...], **namespace: Any) -> Any:
    """A class whose instances can be pickled; see `subclass`."""
    if all(base.__reduce_ex__ in (object.__reduce_ex__, reduced) for base in bases):
        namespace["__reduce_ex__"] = reduced
    metaclass: Any = type(bases[-1])
    return metaclass(name, bases, namespace | {_MADE_BY: made_by})


def is_derived(kind: type) -> bool:
    """Whether a class was made here, and has the name and module of another."""
    return _MADE_BY in vars(kind)


def restore(module: nn.Module, maker: Callable[..., Any]) -> bool:
    """Give a module, in place, the plain class of its subclass by `maker`; returns whether it was of such a one."""
    generated = next((kind for kind in type(module).__mro__ if vars(kind).get(_MADE_BY, (None,))[0] is maker), None)
    if generated is not None:
        module.__class__ = _without(type(module), generated)
    return generated is not None


def _without(kind: Any, generated: Any) -> Any:
    """A class without a generated base: `fully_shard`, for one, makes classes of those that modules have."""
    if kind is generated:
        return generated.__bases__[0]
    base = next(base for base in kind.__bases__ if issubclass(base, generated))
    return over(kind, base, _without(base, generated))


def over(kind: Any, base: Any, other: Any) -> Any:
    """A class that others made of `base`, `parametrize` or `fully_shard`, made of another one."""
    namespace = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    name = kind.__name__.replace(base.__name__, other.__name__)
    return type(kind)(name, tuple(other if each is base else each for each in kind.__bases__), namespace)


def reduced(self: Any, protocol: int) -> Any:
    """The `__reduce_ex__` of such instances: an instance made without `__init__`, and its attributes."""
    kind = type(self)
    if _MADE_BY not in vars(kind):  # a subclass of ours, made by others
        return object.__reduce_ex__(self, protocol)
    return _instance, (_description(kind),), self.__getstate__()


def _description(kind: Any) -> Any:
    """A class as pickle can store it."""
    if _MADE_BY not in vars(kind):
        return kind
    maker, *arguments = vars(kind)[_MADE_BY]
    return (maker, *(_description(x) if isinstance(x, type) else x for x in arguments))


def _class_of(description: Any) -> Any:
    if not isinstance(description, tuple):
        return description
    maker, *arguments = description
    return maker(*map(_class_of, arguments))


def _instance(description: Any) -> Any:
    kind = _class_of(description)
    return kind.__new__(kind)
