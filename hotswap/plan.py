"""What will be swapped: resolved, printable, serialisable. No side effects, no model needed."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from hotswap.errors import HotswapError
from hotswap.guide import RESIZE_MODES
from hotswap.tables import render


@dataclass(frozen=True)
class Swap:
    """One convolution to be made pixel-adaptive."""

    target: str  # module path
    guide: str  # module path whose output steers it
    kernel_size: tuple[int, int]  # of the target; with the channels, checked against the network at hand
    in_channels: int
    out_channels: int
    guide_scale: float = 1e-4
    learn_scale: bool = False
    resize: str = "bilinear"  # how the guide gets the target's input size
    after_activation: bool = True  # take the guide after the activation that follows its module
    target_alias: str | None = None  # conv{stage}_{index}, for people
    guide_alias: str | None = None

    def __post_init__(self) -> None:
        """Check the values a user or a file can get wrong."""
        if not (math.isfinite(self.guide_scale) and self.guide_scale >= 0):
            raise HotswapError(f"guide_scale must be a number >= 0, got {self.guide_scale!r}")
        if self.learn_scale and self.guide_scale == 0:
            raise HotswapError(
                "guide_scale must be > 0 where learn_scale=True: a scale of 0 has no logarithm to learn"
            )
        if self.resize not in RESIZE_MODES:
            raise HotswapError(f"resize must be one of {', '.join(RESIZE_MODES)}, got {self.resize!r}")


@dataclass(frozen=True)
class Plan:
    """All swaps of one network, in the order in which they were asked for."""

    swaps: tuple[Swap, ...]
    notes: tuple[str, ...] = ()  # what a person should know: what a pattern left out, what will be rewritten

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return {"swaps": [asdict(swap) | {"kernel_size": list(swap.kernel_size)} for swap in self.swaps]} | {
            "notes": list(self.notes)
        }

    @classmethod
    def from_dict(cls, data: Any) -> "Plan":
        """Read what `to_dict` wrote.

        Raises:
            HotswapError: where it is anything else.
        """
        swaps, notes = _member(data, "swaps", list, "the plan"), _member(data, "notes", list, "the plan")
        if not swaps:
            raise HotswapError("the plan must name at least one swap, got none")
        if not all(isinstance(note, str) for note in notes):
            raise HotswapError(f"the plan's notes must be strings, got {notes!r}")
        return cls(tuple(_swap(item, index) for index, item in enumerate(swaps)), tuple(notes))

    def __str__(self) -> str:
        """A table, one line a swap, and the notes."""
        rows = [
            (
                swap.target_alias,
                swap.target,
                f"{swap.kernel_size[0]}x{swap.kernel_size[1]}, {swap.in_channels} -> {swap.out_channels}",
                swap.guide if swap.guide_alias in (None, swap.guide) else f"{swap.guide_alias} ({swap.guide})",
                f"{swap.guide_scale:.4g}" + (" (learned)" if swap.learn_scale else ""),
                swap.resize,
            )
            for swap in self.swaps
        ]
        table = render(("alias", "target", "convolution", "guide", "scale", "resize"), rows)
        return "\n".join([table, *(f"note: {note}" for note in self.notes)])


_TYPES: dict[str, type | tuple[type, ...]] = {
    "target": str,
    "guide": str,
    "kernel_size": list,
    "in_channels": int,
    "out_channels": int,
    "guide_scale": (int, float),
    "learn_scale": bool,
    "resize": str,
    "after_activation": bool,
    "target_alias": (str, type(None)),
    "guide_alias": (str, type(None)),
}


def _swap(data: Any, index: int) -> Swap:
    where = f"swap {index} of the plan"
    values = {field.name: _member(data, field.name, _TYPES[field.name], where) for field in fields(Swap)}
    if unknown := sorted(set(data) - set(values)):
        raise HotswapError(f"{where} must hold only {', '.join(values)}, got also {', '.join(map(repr, unknown))}")
    size = values["kernel_size"]
    if len(size) != 2 or not all(isinstance(k, int) for k in size):
        raise HotswapError(f"{where}: kernel_size must be two integers, got {size!r}")
    return Swap(**values | {"kernel_size": (size[0], size[1]), "guide_scale": float(values["guide_scale"])})


def _member(data: Any, name: str, expected: type | tuple[type, ...], where: str) -> Any:
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
