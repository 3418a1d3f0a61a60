"""Size, mean and standard deviation of the images that a network was trained on, and the protocol of its data.

timm's networks state it as the attribute `pretrained_cfg`, a mapping with `mean`, `std` and `input_size`. Others that
come with it, those of a hub and of checkpoints, are given the same attribute, so that it stays with the network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from hotswap.errors import HotswapError

_ATTRIBUTE = "pretrained_cfg"
_PROTOCOL = "protocol"  # a key of it that only hotswap writes
_LONGEST = 100  # characters of a protocol's name
_CHANNELS = 64  # at most: far more than any sensor has
_LARGEST = 2048  # pixels along an axis: a file that says more could make a small network take all memory
_MOST = 1e6  # of a mean or a standard deviation, of images in 0..1
_LEAST = 1e-6  # of a standard deviation


@dataclass(frozen=True)
class ImageStats:
    """Declared size, mean and standard deviation of images, and the protocol; None where undeclared."""

    mean: tuple[float, ...] | None = None  # of images in 0..1, for each channel
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None  # height and width
    protocol: str | None = None  # the name of how its data were prepared

    def __post_init__(self) -> None:
        """Refuse values that are out of range."""
        if (self.mean is None) != (self.std is None):
            raise HotswapError("mean and std of images must be stated both or neither")
        if self.mean is not None and self.std is not None:
            _check_numbers("mean", self.mean, -_MOST)
            _check_numbers("std", self.std, _LEAST)
            if len(self.mean) != len(self.std):
                raise HotswapError(
                    f"mean and std of images must be as many, got {len(self.mean)} and {len(self.std)} numbers"
                )
        if self.size is not None and not (
            len(self.size) == 2 and all(type(n) is int and 1 <= n <= _LARGEST for n in self.size)
        ):
            raise HotswapError(
                f"the size of images must be a height and a width of 1 to {_LARGEST} pixels, got {list(self.size)}"
            )

        if self.protocol is not None and not (isinstance(self.protocol, str) and len(self.protocol) <= _LONGEST):
            raise HotswapError(f"the protocol of images must be text of at most {_LONGEST} characters")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}


def from_values(mean: Any, std: Any, size: Any, protocol: Any = None) -> ImageStats:
    """Parse lists of numbers, or None, and a name, or None, from JSON or a network's attribute."""
    for name, x in (("mean", mean), ("std", std), ("size", size)):
        if x is not None and not isinstance(x, list | tuple):
            raise HotswapError(f"the {name} of images must be a list of numbers, got a {type(x).__name__}")
    mean, std, size = (None if x is None else tuple(x) for x in (mean, std, size))
    return ImageStats(mean, std, size, protocol)


def of(model: nn.Module) -> ImageStats:
    """The statistics that a network declares. An attribute of another form is ignored."""
    config = getattr(model, _ATTRIBUTE, None)
    if not isinstance(config, Mapping):
        return ImageStats()
    size = config.get("input_size")
    try:
        values = (config.get("mean") or None, config.get("std") or None, size[1:] if size else None)
        return from_values(*values, config.get(_PROTOCOL))
    except (HotswapError, TypeError):
        return ImageStats()


def put(model: nn.Module, stats: ImageStats) -> None:
    """Declare statistics on a network; those that are None stay as they were."""
    if stats == ImageStats():
        return
    before = getattr(model, _ATTRIBUTE, None)
    config = dict(before) if isinstance(before, Mapping) else {}
    if stats.mean is not None and stats.std is not None:
        config |= {"mean": stats.mean, "std": stats.std}
    if stats.size is not None:
        config["input_size"] = ((config.get("input_size") or (3,))[0], *stats.size)
    if stats.protocol is not None:
        config[_PROTOCOL] = stats.protocol
    setattr(model, _ATTRIBUTE, config)


def _check_numbers(name: str, values: Sequence[Any], least: float) -> None:
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and least <= x <= _MOST for x in values)
    if not numbers or not 1 <= len(values) <= _CHANNELS:
        raise HotswapError(
            f"the {name} of images must be a number from {least:g} to {_MOST:g} for each channel, got "
            f"{str(list(values))[:100]}"
        )
