"""Values of a plan's JSON, checked: each reader refuses anything but what it returns."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hotswap.errors import HotswapError
from hotswap.targets.guide_spaces import GuideSpace


def space(value: dict[str, Any], where: str) -> GuideSpace:
    """A guide space."""
    names = {field.name for field in fields(GuideSpace)}
    if set(value) != names:
        raise HotswapError(f"{where}: space must hold {', '.join(sorted(names))}, got {', '.join(map(repr, value))}")
    numbers = {
        name: items(member(value, name, list, f"{where}: space"), (int, float), f"{where}: {name}", "numbers")
        for name in ("mean", "std")
    }
    name, bgr = (member(value, key, kind, f"{where}: space") for key, kind in (("name", str), ("bgr", bool)))
    return GuideSpace(name, **numbers, bgr=bgr)


def number(value: Any) -> float | None:
    """A number as a float; None stays."""
    return None if value is None else float(value)


def tap(value: Any, where: str) -> tuple[str, int] | None:
    """The activation that a guide is caught at, or None."""
    if value is None:
        return None
    match value:
        case [str(path), int(calls)] if not isinstance(calls, bool):
            return path, calls
    raise HotswapError(f"{where}: taps must be [path, calls] or null, got {value!r}")


def items(value: list[Any], kinds: Any, name: str, wanted: str, count: int | None = None) -> tuple[Any, ...]:
    """The items of a list, of these kinds, and so many of them."""
    if count not in (None, len(value)) or not all(isinstance(item, kinds) for item in value):
        raise HotswapError(f"{name} must be {wanted}, got {value!r}")
    return tuple(value)


def member(data: Any, name: str, expected: type | tuple[type, ...], where: str) -> Any:
    """A member of a mapping, of a type or one of several."""
    if not isinstance(data, Mapping):
        raise HotswapError(f"{where} must be a mapping, got a {type(data).__name__}")
    if name not in data:
        raise HotswapError(f"{where} must have {name!r}, got only {', '.join(map(repr, data)) or 'nothing'}")
    value = data[name]
    kinds = expected if isinstance(expected, tuple) else (expected,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise HotswapError(f"{where}: {name} must be {wanted}, got {value!r}")
    return value
