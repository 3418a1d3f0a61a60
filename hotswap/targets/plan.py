"""Plans: what is swapped, resolved, printable and serialisable. No side effects, no model needed."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, TypeVar

from hotswap.choices import CONSERVE_MODES, FOOTPRINTS, FX, HOOKS, RESIZE_MODES
from hotswap.errors import HotswapError
from hotswap.network.names import AUTO, INPUT, joined
from hotswap.tables import filled
from hotswap.targets import considered, kernels
from hotswap.targets.considered import Considered
from hotswap.targets.guide_spaces import SCALES, GuideSpace, Space
from hotswap.targets.guided_layer import NamedGuide, Tap

TRANSPOSED = "transposed"  # a transposed convolution whose weights are a bilinear interpolation's
NEAREST = ("nearest", "nearest-exact")
Footprint = int | tuple[int, ...] | str  # of each step, or AUTO
MODES = ("bilinear", *NEAREST, TRANSPOSED)


@dataclass(frozen=True)
class Swap(NamedGuide):
    """One convolution to be made pixel-adaptive."""

    target: str  # module path
    guide: tuple[str, ...]  # what steers it: module paths, whose outputs do, and INPUT; squared distances add up
    kernel_size: tuple[int, int]  # of the target; with the channels, checked against the network at hand
    in_channels: int
    out_channels: int
    guide_scale: float = 1e-4
    learn_scale: bool = False
    kernel: str = kernels.DEFAULT_KERNEL
    conserve: str | None = None  # what scales K back up: "mean" of each tap, sum over each "window", or nothing
    tap_means: tuple[float, ...] | None = None  # for "mean": of K at each tap, row by row, as measured on data
    deviation: float | None = None  # the mean of 1 - K as measured by `calibrate`; None where it was not
    resize: str = "bilinear"  # how the guide gets the target's input size
    after_activation: bool = True  # take the guide after the activation that follows its module
    target_alias: str | None = None  # conv{stage}_{index}, for people
    guide_alias: tuple[str | None, ...] = ()  # one for each of `guide`; empty where none is known
    taps: tuple[Tap | None, ...] = ()  # with hooks, one for each of `guide`: None where its own output is taken

    def __post_init__(self) -> None:
        """Check the values a user or a file can get wrong."""
        self.check_guide()
        kernels.parse(self.kernel)
        if self.conserve not in (None, *CONSERVE_MODES):
            raise HotswapError(f"conserve must be one of {', '.join(CONSERVE_MODES)} or None, got {self.conserve!r}")
        if (self.tap_means is not None) != (self.conserve == "mean"):
            raise HotswapError(
                f'tap_means must be given where conserve is "mean", and nowhere else; target {self.target!r} has '
                f"conserve={self.conserve!r} (hotswap.calibrate measures them)"
            )
        if self.tap_means is not None:
            taps = math.prod(self.kernel_size)
            if len(self.tap_means) != taps or not all(math.isfinite(m) and m > 0 for m in self.tap_means):
                raise HotswapError(f"tap_means must be {taps} numbers > 0, one for each tap, got {self.tap_means!r}")
        if self.resize not in RESIZE_MODES:
            raise HotswapError(f"resize must be one of {', '.join(RESIZE_MODES)}, got {self.resize!r}")


@dataclass(frozen=True)
class Resize(NamedGuide):
    """One enlargement to be guided."""

    kernel: ClassVar[str] = "gaussian"
    target: str  # path of the module, or of the one whose forward calls `F.interpolate`
    call: int | None  # which of the `F.interpolate` calls of that forward, from 0; None where the module is meant
    mode: str  # checked against the network at hand
    guide: tuple[str, ...]  # what steers it: module paths, whose outputs do, and "input"; they count as one
    guide_scale: float = 1e-4
    learn_scale: bool = False
    footprint: int | tuple[int, ...] = 2  # of each step, the coarsest first
    halvings: int = 0  # of the map before the first step; so many steps lead back to it
    residual: bool = True  # what the guide changes is added to the plain enlargement, so that K = 1 is the same
    bounded: bool = False  # no pixel leaves the range of its coarse neighbours
    space: Space | None = None  # what is made of the image before it guides; None leaves it
    deviation: float | None = None  # the mean of 1 - K as measured by `calibrate`; None where it was not
    after_activation: bool = True  # take the guide after the activation that follows its module
    target_alias: str | None = None  # resize_{index}, for people
    guide_alias: tuple[str | None, ...] = ()  # one for each of `guide`; empty where none is known
    # With hooks, one for each of `guide`: the activation that it is caught at, as a module's path and its calls since
    # the guide's to pass over, or None where the guide's own output is taken. Empty with fx.
    taps: tuple[Tap | None, ...] = ()
    # Where the code makes the call, as the number depends on the size: see `Chain.at`; in a loop also what its input
    # is made of. Empty in older plans, and where the module is meant.
    at: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the values a user or a file can get wrong."""
        self.check_guide()
        if self.call is not None and self.call < 0:
            raise HotswapError(f"call must be null or a number >= 0, got {self.call}")
        if self.mode not in MODES:
            raise HotswapError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        check_footprint(self.footprint)
        if not 0 <= self.halvings < len(self.footprints):
            raise HotswapError(f"halvings must be fewer than the {len(self.footprints)} steps, got {self.halvings}")
        if self.space is not None and INPUT not in self.guide:
            raise HotswapError(f'space must be null where the image ("input") is no guide, as of {self.name!r}')
        if reason := why_not_guided(self.mode, self.footprint):
            raise HotswapError(f"target {self.name!r} cannot be swapped: {reason}")

    @property
    def footprints(self) -> tuple[int, ...]:
        """The footprint of each step."""
        return (self.footprint,) if isinstance(self.footprint, int) else self.footprint

    @property
    def plain_at_zero(self) -> bool:
        """Whether it is the plain enlargement where K is 1."""
        return self.mode not in NEAREST and (self.residual or self.footprint == 2)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values.

        Raises:
            HotswapError: where the guide space is a function, which no file can hold.
        """
        if self.space is None:
            return super().to_dict()
        if not isinstance(self.space, GuideSpace):
            raise HotswapError(
                f"the guide space of target {self.name!r} is a function, which cannot be written; convert with "
                f"one of {', '.join(map(repr, SCALES))} or a hotswap.GuideSpace, or have the network compute it: a "
                "module of its own, named as the guide"
            )
        return replace(self, space=None).to_dict() | {"space": self.space.to_dict()}

    @property
    def name(self) -> str:
        """The target in a few words."""
        return named(self.target, self.call)

    @property
    def layer_path(self) -> str:
        """The path of its layer in the converted network."""
        if self.call is None:
            return self.target
        return joined(self.target, f"_hotswap_resize_{self.call}")


def named(path: str, call: int | None) -> str:
    """A target in a few words: the module's path, or the call of `F.interpolate` in a module's forward."""
    return path if call is None else f"F.interpolate {call} in {path or 'the network'}"


def check_footprint(footprint: Any) -> None:
    """Refuse what is neither a footprint nor one for each of several steps."""
    each = (footprint,) if isinstance(footprint, int) else footprint
    if not isinstance(each, tuple) or not each or any(type(n) is not int or n not in FOOTPRINTS for n in each):
        choices = ", ".join(map(str, FOOTPRINTS))
        raise HotswapError(f"footprint must be one of {choices}, or one of these for each step, got {footprint!r}")


def why_not_guided(mode: str, footprint: Footprint) -> str | None:
    """None if an enlargement of this mode has something to steer under this footprint, else why it has not."""
    if mode in NEAREST and footprint in (2, AUTO):
        return (
            f"mode {mode!r} reads one coarse pixel, so there is nothing to weigh; footprint=4 weighs 4 x 4 "
            "(smoother than the original, also where K = 1)"
        )
    return None


@dataclass(frozen=True)
class Plan:
    """All swaps of one network, in the order in which they were asked for."""

    swaps: tuple[Swap, ...]
    drift: float | None = None  # how far `calibrate` saw outputs move from the plain network's: relative RMS
    notes: tuple[str, ...] = ()  # what a person should know: what a pattern left out, what will be rewritten
    method: str = FX  # how it is carried out
    resizes: tuple[Resize, ...] = ()  # enlargements that are guided, beside the convolutions
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
        swaps, notes = _member(data, "swaps", list, "the plan"), _member(data, "notes", list, "the plan")
        drift = _number(_member({"drift": None} | data, "drift", _OPTIONAL_NUMBER, "the plan"))
        resizes = _member({"resizes": []} | data, "resizes", list, "the plan")  # there were none before format 3
        if not swaps and not resizes:
            raise HotswapError("the plan must name at least one swap, got none")
        if not all(isinstance(note, str) for note in notes):
            raise HotswapError(f"the plan's notes must be strings, got {notes!r}")
        method = _member(data, "method", str, "the plan") if "method" in data else FX  # it was not written at first
        return cls(
            tuple(_entry(Swap, item, index) for index, item in enumerate(swaps)),
            drift,
            tuple(notes),
            method,
            tuple(_entry(Resize, item, index) for index, item in enumerate(resizes)),
        )

    def __str__(self) -> str:
        """A table, one line a swap, without columns that would be empty, then the drift and the notes."""
        columns = ("alias", "target", "convolution", "guide", "scale", "kernel", "conserve", "deviation", "resize")
        rows = [
            (
                swap.target_alias,
                swap.target,
                f"{swap.kernel_size[0]}x{swap.kernel_size[1]}, {swap.in_channels} -> {swap.out_channels}",
                _guide_text(swap.guide_names),
                _scale_text(swap),
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
        drift = [] if self.drift is None else [f"drift (relative RMS change of the outputs): {self.drift:.3g}"]
        return "\n".join([*tables, *drift, *(f"note: {note}" for note in self.notes)])


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
    "at": (str, "strings"),
}
# What older files have not, by kind.
_LATER: dict[Any, dict[str, Any]] = {
    Swap: {"kernel": kernels.DEFAULT_KERNEL, "conserve": None, "tap_means": None, "deviation": None, "taps": []},
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
    values = {field.name: _member(given, field.name, types[field.name], where) for field in fields(kind)}
    if unknown := sorted(set(data) - set(values)):
        raise HotswapError(f"{where} must hold only {', '.join(values)}, got also {', '.join(map(repr, unknown))}")
    for name in _FORMAT_1[kind]:
        values[name] = values[name] if isinstance(values[name], list) else [values[name]]
    for name, (kinds, wanted) in _ITEMS.items():
        if values.get(name) is not None:
            count = 2 if name == "kernel_size" else None
            values[name] = _items(values[name], kinds, f"{where}: {name}", wanted, count)
    values["taps"] = tuple(_tap(tap, where) for tap in values["taps"])
    if isinstance(values.get("footprint"), list):
        values["footprint"] = tuple(values["footprint"])
    if values.get("space") is not None:
        values["space"] = _space(values["space"], where)
    for name in ("guide_scale", "deviation"):
        values[name] = _number(values[name])
    return kind(**values)


def _space(value: dict[str, Any], where: str) -> GuideSpace:
    names = {field.name for field in fields(GuideSpace)}
    if set(value) != names:
        raise HotswapError(f"{where}: space must hold {', '.join(sorted(names))}, got {', '.join(map(repr, value))}")
    numbers = {
        name: _items(_member(value, name, list, f"{where}: space"), (int, float), f"{where}: {name}", "numbers")
        for name in ("mean", "std")
    }
    name, bgr = (_member(value, key, kind, f"{where}: space") for key, kind in (("name", str), ("bgr", bool)))
    return GuideSpace(name, **numbers, bgr=bgr)


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _tap(value: Any, where: str) -> tuple[str, int] | None:
    if value is None:
        return None
    match value:
        case [str(path), int(calls)] if not isinstance(calls, bool):
            return path, calls
    raise HotswapError(f"{where}: taps must be [path, calls] or null, got {value!r}")


def _items(value: list[Any], kinds: Any, name: str, wanted: str, count: int | None = None) -> tuple[Any, ...]:
    if count not in (None, len(value)) or not all(isinstance(item, kinds) for item in value):
        raise HotswapError(f"{name} must be {wanted}, got {value!r}")
    return tuple(value)


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
