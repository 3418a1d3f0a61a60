"""Checks of the verbs' arguments, before anything is looked up."""

from collections.abc import Mapping
from typing import Any

from hotswap.choices import CONSERVE_MODES, RESIZE_MODES
from hotswap.errors import HotswapError
from hotswap.network.names import AUTO, INPUT
from hotswap.targets.entries import PROJECTION_WINDOWS
from hotswap.targets.kernels import parse


def require_nothing_measured(guide_scale: Any, conserve: str | None, projection: Any = 0) -> None:
    """Refuse what is measured on data where there is none.

    Raises:
        HotswapError: with what to do.
    """
    for name, value, measured in (("guide_scale", guide_scale, AUTO), ("conserve", conserve, "mean")):
        if value == measured:
            raise HotswapError(
                f'{name}="{measured}" is measured on data: give convert some as calibrate_on, or convert without it '
                "and hotswap.calibrate the result"
            )

    if projection:
        raise HotswapError(
            "projection starts from what is measured on data: give convert some as calibrate_on, or leave it out"
        )


# What does nothing to the output, and what it is where nobody said it.
_USUAL = {
    "learn_scale": False,
    "conserve": None,
    "resize": RESIZE_MODES[0],
    "after_activation": True,
    "footprint": AUTO,
    "bounded": AUTO,
}


def require_of_output(guide: Any, guide_scale: Any, given: Mapping[str, Any]) -> None:
    """Refuse what says nothing where only the output is a target.

    Raises:
        HotswapError: with what is possible.
    """
    alone = "where only the output is a target"
    if not (isinstance(guide, str) and guide in (AUTO, INPUT)):
        raise HotswapError(f'guide must be "{AUTO}" or "{INPUT}" {alone}, which the image guides, got {guide!r}')
    if isinstance(guide_scale, Mapping):
        raise HotswapError(f"guide_scale must be a number {alone}, got {guide_scale!r}")
    for option, usual in _USUAL.items():
        if given[option] != usual:
            raise HotswapError(f"{option} must be {usual!r} {alone}, which it does nothing to, got {given[option]!r}")


def parse_projection(given: Any) -> tuple[int, int]:
    """Channels and window of a projection, from a number of channels or both; no channels for none.

    Raises:
        HotswapError: where it is neither.
    """
    channels: Any
    channels, window = given if isinstance(given, (tuple, list)) and len(given) == 2 else (given, 1)
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (channels, window))
    if not whole or channels < 0 or window not in PROJECTION_WINDOWS:
        raise HotswapError(
            "projection must be a number of channels, or (channels, window) with a window of "
            f"{' or '.join(map(str, PROJECTION_WINDOWS))}, got {given!r}"
        )
    return int(channels), int(window)


_CHOICES: dict[str, tuple[Any, ...]] = {
    "conserve": (None, *CONSERVE_MODES),
    "resize": RESIZE_MODES,
    "learn_scale": (False, True),
    "after_activation": (False, True),
}


def check_values(given: Mapping[str, Any]) -> None:
    """Refuse option values that no target can have.

    Raises:
        HotswapError: with those that it can.
    """
    for name, value in given.items():
        if name == "kernel":
            parse(value)
        elif name == "gate":
            if not isinstance(value, int) or value < 0:
                raise HotswapError(f"gate must be True, False or a number of groups of channels, got {value!r}")
        elif not any(isinstance(value, type(choice)) and value == choice for choice in _CHOICES[name]):
            choices = ", ".join(str(choice) for choice in _CHOICES[name] if choice is not None)
            or_none = " or None" if None in _CHOICES[name] else ""
            raise HotswapError(f"{name} must be one of {choices}{or_none}, got {value!r}")
