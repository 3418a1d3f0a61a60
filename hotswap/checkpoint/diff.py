"""The differences between two checkpoints: architecture, plan and weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hotswap.checkpoint.metadata import Metadata
from hotswap.checkpoint.read import Checkpoint
from hotswap.tables import render

_SHOWN = 10  # weights in the printed table; JSON has all


@dataclass(frozen=True)
class Setting:
    """A setting that differs; None where a file does not have it."""

    name: str  # "architecture", "method", or a target and the field of its swap
    first: Any
    second: Any


@dataclass(frozen=True)
class Weight:
    """A tensor of both files that differs in values, shape or dtype."""

    name: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[str, str]
    relative: float | None  # ||second - first|| / ||first||; None where shapes differ
    largest: float | None  # |second - first|


@dataclass(frozen=True)
class Difference:
    """The result of `diff`."""

    settings: tuple[Setting, ...]
    only_first: tuple[str, ...]  # tensors
    only_second: tuple[str, ...]
    weights: tuple[Weight, ...]  # the most changed first
    equal: int  # tensors that are the same, bit for bit

    @property
    def same(self) -> bool:
        """Whether settings and tensors are the same."""
        return not (self.settings or self.only_first or self.only_second or self.weights)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"same": self.same} | asdict(self)

    def __str__(self) -> str:
        """The settings, then the tensors."""
        lines = []
        if self.settings:
            lines.append(
                render(("", "first", "second"), [(s.name, _text(s.first), _text(s.second)) for s in self.settings])
            )
        for where, names in (("first", self.only_first), ("second", self.only_second)):
            if names:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                lines.append(f"only in the {where}: {', '.join(names[:_SHOWN])}{more}")
        if self.weights:
            lines.append(
                render(("weight", "relative change", "largest", ""), [_row(w) for w in self.weights[:_SHOWN]])
            )
        if len(self.weights) > _SHOWN:
            lines.append(f"and {len(self.weights) - _SHOWN} more weights that differ less")
        lines.append("the same" if self.same else f"{self.equal} weights are equal, {len(self.weights)} differ")
        return "\n".join(lines)


def diff(first: Checkpoint, second: Checkpoint) -> Difference:
    """Compare two files that `checkpoint.read` read. Learned scales are compared with the weights."""
    one, other = _tensors(first), _tensors(second)
    both = [name for name in one if name in other]
    compared = [_compared(name, one[name], other[name]) for name in both]
    changed = [weight for weight in compared if weight is not None]
    changed.sort(key=lambda w: float("inf") if w.relative is None else w.relative, reverse=True)
    return Difference(
        settings=tuple(_settings(first.metadata or Metadata(), second.metadata or Metadata())),
        only_first=tuple(name for name in one if name not in other),
        only_second=tuple(name for name in other if name not in one),
        weights=tuple(changed),
        equal=len(both) - len(changed),
    )


def _tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    scales: Mapping[str, Tensor] = {} if checkpoint.metadata is None else checkpoint.metadata.learned_scales
    return {**checkpoint.state_dict, **scales}


def _compared(name: str, a: Tensor, b: Tensor) -> Weight | None:
    shapes, dtypes = (tuple(a.shape), tuple(b.shape)), (_dtype(a), _dtype(b))
    if shapes[0] != shapes[1]:
        return Weight(name, shapes, dtypes, None, None)
    if a.dtype == b.dtype and torch.equal(a, b):
        return None
    widest = torch.complex128 if a.is_complex() or b.is_complex() else torch.float64
    wide_a, wide_b = a.to(widest), b.to(widest)
    away = (wide_b - wide_a).abs()
    relative = float(away.norm() / wide_a.norm().clamp_min(1e-300))
    return Weight(name, shapes, dtypes, relative, float(away.max()) if away.numel() else 0.0)


def _settings(a: Metadata, b: Metadata) -> list[Setting]:
    pairs = {"architecture": (a.architecture, b.architecture)}
    plans = [_flat(metadata) for metadata in (a, b)]
    pairs |= {name: (plans[0].get(name), plans[1].get(name)) for name in {**plans[0], **plans[1]}}
    return [Setting(name, one, other) for name, (one, other) in pairs.items() if one != other]


def _flat(metadata: Metadata) -> dict[str, Any]:
    """A plan's settings by name, without measurements and notes."""
    if metadata.plan is None:
        return {}
    flat: dict[str, Any] = {"method": metadata.plan.method}
    for entry in metadata.plan.entries:
        flat[entry.name] = "swapped"
        settings = entry.to_dict().items()
        flat |= {f"{entry.name}: {field}": value for field, value in settings if not field.endswith("alias")}
    if (output := metadata.plan.output) is not None:
        flat[output.name] = output.alias
        flat |= {f"{output.name}: {field}": x for field, x in output.to_dict().items() if field != "gate"}  # a weight
    return flat


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _row(weight: Weight) -> tuple[object, ...]:
    notes = [f"{a} -> {b}" for a, b in (weight.shapes, weight.dtypes) if a != b]
    return weight.name, weight.relative, weight.largest, ", ".join(notes)


def _text(value: Any) -> str:
    text = "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
