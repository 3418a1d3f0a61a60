"""Whether a network calls the enlargements of a plan, and in the mode that the plan has."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from hotswap.errors import HotswapError
from hotswap.targets.entries import Resize
from hotswap.targets.sites import Sites


def check_mode(resize: Resize, mode: Any) -> None:
    """Check that a target enlarges as it did when the plan was made.

    Raises:
        HotswapError: where it does not.
    """
    if mode != resize.mode:
        raise HotswapError(
            f"target {resize.name!r} must be, by the plan, of mode {resize.mode!r}, got {mode!r}; "
            "the plan was made for another network"
        )


def located(model: nn.Module, resizes: Sequence[Resize], sites: Sites) -> tuple[Resize, ...]:
    """Enlargements with the place of each call in the code.

    Args:
        model: the network.
        resizes: what to guide.
        sites: of this network, with numbers as `resizes` have them.

    Raises:
        HotswapError: where the network does not call one of them, or in another mode.
    """
    located_resizes = []
    for resize in resizes:
        site = next((x for x in sites if (x.path, x.call) == (resize.target, resize.call)), None)
        if site is None:
            raise HotswapError(_missing(model, resize))
        alike = [x for x in sites if (x.path, x.at) == (site.path, site.at)]
        if site.at and len(alike) > 1:
            raise HotswapError(
                f"target {resize.name!r} is one of {len(alike)} calls at {' > '.join(site.at)}, which a plan cannot "
                "tell apart; have the code make the call in a module of its own"
            )
        check_mode(resize, site.mode)
        located_resizes.append(replace(resize, at=site.at))
    return tuple(located_resizes)


def _missing(model: nn.Module, resize: Resize) -> str:
    name = type(model).__name__
    if not resize.at:
        return f"target {resize.name!r} is never called by {name}; name one that is"
    return (
        f"target {resize.name!r} is called, by the plan, at {' > '.join(resize.at)}, and {name} makes no such call "
        "with these inputs; give example_inputs with which it does, or convert the network anew if its code changed"
    )
