"""Values in sequences, mappings and dataclasses."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


def parts(x: Any) -> list[tuple[str, Any]] | None:
    """What a container holds, each with its place as code has it: `[0]`, `['key']`, `.field`; None for all else."""
    if isinstance(x, Mapping):
        return [(f"[{key!r}]", item) for key, item in x.items()]
    if isinstance(x, Sequence) and not isinstance(x, str | bytes):
        return [(f"[{index}]", item) for index, item in enumerate(x)]
    if is_dataclass(x) and not isinstance(x, type):
        return [(f".{field.name}", getattr(x, field.name, None)) for field in fields(x)]
    return None


def replaced(x: Any, where: str, new: Any) -> Any:
    """A container like `x`, of its class, that holds another value at a place as `parts` and places inside name it.

    Raises:
        KeyError: where there is no such place.
    """
    if not where:
        return new
    for place, item in parts(x) or ():
        rest = where.removeprefix(place)
        if rest == where or rest[:1] not in ("", "[", "."):
            continue
        inner = replaced(item, rest, new)
        if isinstance(x, Mapping):
            items = {key: inner if f"[{key!r}]" == place else other for key, other in x.items()}
            if type(x) is dict:
                return items
            kind: Any = type(x)
            return kind(**items) if is_dataclass(x) else kind(items)  # of transformers, or an OrderedDict
        if is_dataclass(x) and not isinstance(x, type):
            return replace(x, **{place[1:]: inner})
        others = [inner if f"[{index}]" == place else other for index, other in enumerate(x)]
        return type(x)(*others) if hasattr(x, "_fields") else type(x)(others)
    raise KeyError(where)


def at(x: Any, where: str) -> Any:
    """The value at a place.

    Raises:
        KeyError: where there is no such place.
    """
    if not where:
        return x
    for place, item in parts(x) or ():
        rest = where.removeprefix(place)
        if rest != where and rest[:1] in ("", "[", "."):
            return at(item, rest)
    raise KeyError(where)


def tensors_in(x: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists and mappings."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, tuple | list | Mapping):
        for item in x.values() if isinstance(x, Mapping) else x:
            yield from tensors_in(item)
