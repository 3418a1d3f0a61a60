"""Entries of a plan: one convolution or one enlargement each, and the values they can have. No model needed."""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hotswap.choices import CONSERVE_MODES, FOOTPRINTS, RESIZE_MODES
from hotswap.errors import HotswapError
from hotswap.network.names import AUTO, INPUT, joined
from hotswap.targets import kernels
from hotswap.targets.guide_spaces import SCALES, GuideSpace, Space
from hotswap.targets.guided_layer import NamedGuide, Tap

TRANSPOSED = "transposed"  # a transposed convolution whose weights are a bilinear interpolation's
NEAREST = ("nearest", "nearest-exact")
Footprint = int | tuple[int, ...] | str  # of each step, or AUTO
PROJECTION_WINDOWS = (1, 3)
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
    gate: tuple[float, ...] = ()  # a, one or one for each group of outputs: 1 + a (K - 1) takes K's place; learned
    # A learned projection of the guide: a row for each channel it is projected to, of the weights of all its channels
    # at the pixels of a window of `projection_window` x `projection_window`.
    projection: tuple[tuple[float, ...], ...] = ()
    projection_window: int = 1
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
        if reason := self._why_no_projection():
            raise HotswapError(f"target {self.target!r} cannot have this projection: {reason}")
        if reason := self._why_no_gate():
            raise HotswapError(f"target {self.target!r} cannot have this gate: {reason}")
        if self.resize not in RESIZE_MODES:
            raise HotswapError(f"resize must be one of {', '.join(RESIZE_MODES)}, got {self.resize!r}")

    def _why_no_projection(self) -> str | None:
        if self.projection_window not in PROJECTION_WINDOWS:
            return (
                f"its window must be one of {', '.join(map(str, PROJECTION_WINDOWS))}, got {self.projection_window}"
            )
        lengths = {len(row) for row in self.projection}
        if len(lengths) > 1 or any(n == 0 or n % self.projection_window**2 for n in lengths):
            return f"its rows must hold one number for each channel and pixel, got rows of {sorted(lengths)}"
        if not all(math.isfinite(x) for row in self.projection for x in row):
            return "its numbers must be finite"
        return None

    @property
    def projection_text(self) -> str | None:
        """The projection in a few words; None without one."""
        if not self.projection:
            return None
        k = self.projection_window
        return f"{k}x{k}, {len(self.projection[0]) // k**2} -> {len(self.projection)}"

    @property
    def added(self) -> int:
        """Parameters that it adds to the network."""
        return super().added + len(self.gate) + sum(map(len, self.projection))

    def _why_no_gate(self) -> str | None:
        count, outputs = len(self.gate), self.out_channels
        if not all(math.isfinite(a) for a in self.gate):
            return f"its numbers must be finite, got {self.gate!r}"
        if count > 1 and not outputs:
            return f"a pool takes one, got {count}"
        if count > 1 and outputs % count:
            return f"there must be one, or a divisor of its {outputs} output channels, got {count}"
        if count and self.guide_scale == 0:
            return "guide_scale must be > 0: at 0 K is 1, whatever the gate is"
        return None

    @property
    def closed(self) -> bool:
        """Whether it has a gate, and that lets nothing of K through."""
        return bool(self.gate) and not any(self.gate)

    @property
    def gate_text(self) -> str:
        """The gate in a few words."""
        if len(self.gate) == 1:
            return f"{self.gate[0]:.3g}"
        return f"{len(self.gate)}, mean |a| {sum(map(abs, self.gate)) / len(self.gate):.3g}" if self.gate else "none"


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
