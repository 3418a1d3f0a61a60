"""One enlargement to be guided: resolved, printable, serialisable."""

from dataclasses import dataclass
from typing import ClassVar

from hotswap.choices import FOOTPRINTS
from hotswap.errors import HotswapError
from hotswap.guided import NamedGuide, Tap

TRANSPOSED = "transposed"  # a transposed convolution whose weights are a bilinear interpolation's
NEAREST = ("nearest", "nearest-exact")
MODES = ("bilinear", *NEAREST, TRANSPOSED)


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
    footprint: int = 2
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
        if self.footprint not in FOOTPRINTS:
            raise HotswapError(f"footprint must be one of {', '.join(map(str, FOOTPRINTS))}, got {self.footprint!r}")
        if reason := why_not_guided(self.mode, self.footprint):
            raise HotswapError(f"target {self.name!r} cannot be swapped: {reason}")

    @property
    def name(self) -> str:
        """The target in a few words."""
        return named(self.target, self.call)

    @property
    def layer_path(self) -> str:
        """Where in the converted network the layer is that does it."""
        if self.call is None:
            return self.target
        own = f"_hotswap_resize_{self.call}"
        return f"{self.target}.{own}" if self.target else own


def named(path: str, call: int | None) -> str:
    """A target in a few words: the module's path, or the call of `F.interpolate` in a module's forward."""
    return path if call is None else f"F.interpolate {call} in {path or 'the network'}"


def why_not_guided(mode: str, footprint: int) -> str | None:
    """None if an enlargement of this mode has something to steer under this footprint, else why it has not."""
    if mode in NEAREST and footprint == 2:
        return (
            f"mode {mode!r} reads one coarse pixel, so there is nothing to weigh; footprint=4 weighs 4 x 4 "
            "(smoother than the original, also where K = 1)"
        )
    return None
