"""Plans: what is swapped, resolved, printable and serialisable. No side effects, no model needed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from hotswap.choices import FX, HOOKS
from hotswap.errors import HotswapError
from hotswap.tables import filled
from hotswap.targets import considered, json_values, kernels
from hotswap.targets.considered import Considered
from hotswap.targets.entries import Resize, Swap
from hotswap.targets.output import Output


@dataclass(frozen=True)
class Plan:
    """All swaps of one network, in the order in which they were asked for."""

    swaps: tuple[Swap, ...]
    drift: float | None = None  # how far `calibrate` saw outputs move from the plain network's: relative RMS
    notes: tuple[str, ...] = ()  # what a person should know: what a pattern left out, what will be rewritten
    method: str = FX  # how it is carried out
    resizes: tuple[Resize, ...] = ()  # enlargements that are guided, beside the convolutions
    output: Output | None = None  # the refinement of the network's scores
    # All enlargements of the network, where some were asked for; in no file.
    enlargements: tuple[Considered, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        """Check what a file can get wrong."""
        if self.method not in (FX, HOOKS):
            raise HotswapError(f"the plan's method must be {FX} or {HOOKS}, got {self.method!r}")

    @property
    def entries(self) -> tuple[Swap | Resize, ...]:
        """The convolutions, then the enlargements."""
        return (*self.swaps, *self.resizes)

    @classmethod
    def joined(cls, plans: Sequence["Plan"]) -> "Plan":
        """One plan of several parts of one network, in this order."""
        drifts = [plan.drift for plan in plans if plan.drift is not None]
        return cls(
            tuple(swap for plan in plans for swap in plan.swaps),
            drifts[-1] if drifts else None,
            tuple(note for plan in plans for note in plan.notes),
            HOOKS if any(plan.method == HOOKS for plan in plans) else FX,
            tuple(resize for plan in plans for resize in plan.resizes),
            next((plan.output for plan in plans if plan.output is not None), None),
            tuple(dict.fromkeys(each for plan in plans for each in plan.enlargements)),
        )

    def noted(self, *notes: str) -> "Plan":
        """The same plan with more notes."""
        return replace(self, notes=self.notes + notes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, without those of `enlargements`; `from_dict` reads them back."""
        return {
            "swaps": [swap.to_dict() for swap in self.swaps],
            "resizes": [resize.to_dict() for resize in self.resizes],
            "refinement": None
            if self.output is None
            else self.output.to_dict(),  # "output" is a file on the command line
            "drift": self.drift,
            "notes": list(self.notes),
            "method": self.method,
        }

    @classmethod
    def from_dict(cls, data: Any) -> "Plan":
        """Read what `to_dict` writes, or wrote in format 1, before guides could have several sources.

        Raises:
            HotswapError: where it is anything else.
        """
        swaps, notes = (
            json_values.member(data, "swaps", list, "the plan"),
            json_values.member(data, "notes", list, "the plan"),
        )
        drift = json_values.number(json_values.member({"drift": None} | data, "drift", _OPTIONAL_NUMBER, "the plan"))
        resizes = json_values.member(
            {"resizes": []} | data, "resizes", list, "the plan"
        )  # there were none before format 3
        output = json_values.member({"refinement": None} | data, "refinement", (dict, type(None)), "the plan")
        if not swaps and not resizes and output is None:
            raise HotswapError("the plan must name at least one swap, got none")
        if not all(isinstance(note, str) for note in notes):
            raise HotswapError(f"the plan's notes must be strings, got {notes!r}")
        method = (
            json_values.member(data, "method", str, "the plan") if "method" in data else FX
        )  # it was not written at first
        return cls(
            tuple(_entry(Swap, item, index) for index, item in enumerate(swaps)),
            drift,
            tuple(notes),
            method,
            tuple(_entry(Resize, item, index) for index, item in enumerate(resizes)),
            None if output is None else Output.from_dict(output),
        )

    def __str__(self) -> str:
        """A table, one line a swap, without columns that would be empty, then the drift and the notes."""
        columns = (
            "alias",
            "target",
            "convolution",
            "guide",
            "scale",
            "projection",
            "gate",
            "kernel",
            "conserve",
            "deviation",
            "resize",
        )
        rows = [
            (
                swap.target_alias,
                swap.target,
                f"{swap.kernel_size[0]}x{swap.kernel_size[1]}, {swap.in_channels} -> {swap.out_channels}",
                _guide_text(swap.guide_names),
                _scale_text(swap),
                swap.projection_text,
                swap.gate_text if swap.gate else None,
                None if swap.kernel == kernels.DEFAULT_KERNEL else swap.kernel,
                swap.conserve,
                swap.deviation,
                swap.resize,
            )
            for swap in self.swaps
        ]
        tables = [filled(columns, rows)] if rows else []
        if self.resizes:
            tables.append(filled(_RESIZE_COLUMNS, [_resize_row(resize) for resize in self.resizes]))
        if self.enlargements:
            tables.append(considered.table(self.enlargements))
        if self.output is not None:
            tables.append(str(self.output))
        count = sum(entry.added for entry in self.entries) + (0 if self.output is None else self.output.added)
        added = [f"learned beside the network's weights: {count:,} parameters"] if count else []
        drift = [] if self.drift is None else [f"drift (relative RMS change of the outputs): {self.drift:.3g}"]
        return "\n".join([*tables, *added, *drift, *(f"note: {note}" for note in self.notes)])


_RESIZE_COLUMNS = ("alias", "enlargement", "mode", "footprint", "guide", "scale", "deviation", "space", "form")


def _resize_row(resize: Resize) -> tuple[object, ...]:
    return (
        resize.target_alias,
        resize.name,
        resize.mode,
        ", ".join(f"{n}x{n}" for n in resize.footprints)
        + (f" ({resize.halvings} halved)" if resize.halvings else ""),
        _guide_text(resize.guide_names),
        _scale_text(resize),
        resize.deviation,
        None if resize.space is None else str(getattr(resize.space, "name", "a function")),
        ("bounded" if resize.bounded else None) if resize.residual else "smooth",
    )


def _guide_text(names: Iterable[tuple[str, str | None]]) -> str:
    return " + ".join(path if alias in (None, path) else f"{alias} ({path})" for path, alias in names)


def _scale_text(swap: Swap | Resize) -> str:
    return f"{swap.guide_scale:.4g}" + (" (learned)" if swap.learn_scale else "")


_OPTIONAL_NUMBER = (int, float, type(None))
_TYPES: dict[str, type | tuple[type, ...]] = {
    "target": str,
    "call": (int, type(None)),
    "mode": str,
    "guide": list,
    "kernel_size": list,
    "in_channels": int,
    "out_channels": int,
    "guide_scale": (int, float),
    "learn_scale": bool,
    "gate": list,
    "projection": list,
    "projection_window": int,
    "kernel": str,
    "conserve": (str, type(None)),
    "tap_means": (list, type(None)),
    "footprint": (int, list),
    "halvings": int,
    "residual": bool,
    "bounded": bool,
    "space": (dict, type(None)),
    "deviation": _OPTIONAL_NUMBER,
    "resize": str,
    "after_activation": bool,
    "target_alias": (str, type(None)),
    "guide_alias": list,
    "taps": list,
    "at": list,
}
_ITEMS: dict[str, tuple[Any, str]] = {
    "kernel_size": (int, "two integers"),
    "guide": (str, "strings"),
    "guide_alias": ((str, type(None)), "strings or null"),
    "tap_means": ((int, float), "numbers"),
    "gate": ((int, float), "numbers"),
    "at": (str, "strings"),
}
# What older files have not, by kind.
_LATER: dict[Any, dict[str, Any]] = {
    Swap: {
        "gate": [],
        "projection": [],
        "projection_window": 1,
        "kernel": kernels.DEFAULT_KERNEL,
        "conserve": None,
        "tap_means": None,
        "deviation": None,
        "taps": [],
    },
    Resize: {"taps": [], "at": [], "halvings": 0, "residual": False, "bounded": False, "space": None},
}
_FORMAT_1: dict[Any, dict[str, Any]] = {
    Swap: {"guide": (list, str), "guide_alias": (list, str, type(None))},
    Resize: {},
}
Entry = TypeVar("Entry", Swap, Resize)


def _entry(kind: type[Entry], data: Any, index: int) -> Entry:
    where = f"{kind.__name__.lower()} {index} of the plan"
    given, types = _LATER[kind] | dict(data) if isinstance(data, Mapping) else data, _TYPES | _FORMAT_1[kind]
    values = {field.name: json_values.member(given, field.name, types[field.name], where) for field in fields(kind)}
    if unknown := sorted(set(data) - set(values)):
        raise HotswapError(f"{where} must hold only {', '.join(values)}, got also {', '.join(map(repr, unknown))}")
    for name in _FORMAT_1[kind]:
        values[name] = values[name] if isinstance(values[name], list) else [values[name]]
    for name, (kinds, wanted) in _ITEMS.items():
        if values.get(name) is not None:
            count = 2 if name == "kernel_size" else None
            values[name] = json_values.items(values[name], kinds, f"{where}: {name}", wanted, count)
    if "projection" in values:
        rows = (json_values.items([row], list, f"{where}: projection", "lists")[0] for row in values["projection"])
        numbers = ((int, float), f"{where}: projection", "numbers")
        values["projection"] = tuple(json_values.items(row, *numbers) for row in rows)
    values["taps"] = tuple(json_values.tap(tap, where) for tap in values["taps"])
    if isinstance(values.get("footprint"), list):
        values["footprint"] = tuple(values["footprint"])
    if values.get("space") is not None:
        values["space"] = json_values.space(values["space"], where)
    for name in ("guide_scale", "deviation"):
        values[name] = json_values.number(values[name])
    return kind(**values)
