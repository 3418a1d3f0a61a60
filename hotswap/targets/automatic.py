"""What the target "auto" is: of what a network has, that which gained most on real labels, untrained if it can be."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from hotswap.errors import HotswapError
from hotswap.network.names import AUTO, INPUT
from hotswap.targets.choose import PAPER
from hotswap.targets.choose_enlargements import RESIZE
from hotswap.targets.elsewhere import gives_scores
from hotswap.targets.entries import Footprint
from hotswap.targets.lookup import Names
from hotswap.targets.output import OUTPUT
from hotswap.targets.sites import Sites
from hotswap.targets.verdicts import verdict

_NOTES = {
    RESIZE: f'"{AUTO}" is "{RESIZE}" here, what gained most on real labels, before any training',
    OUTPUT: f'"{AUTO}" is "{OUTPUT}" here, as no interpolation enlarges the scores: nothing changes until it is '
    "trained; on real labels it then gained 0.9 points on one network and 0.04 on another",
    PAPER: f'"{AUTO}" is "{PAPER}" here, as the network gives no scores of classes for each pixel',
}
_BY_ANOTHER = f'"{AUTO}" is "{PAPER}" here, as only convolutions have a guide other than the image'


@contextmanager
def explained(notes: Sequence[str]) -> Iterator[None]:
    """In this block an error says first what "auto" is, where it was a target."""
    try:
        yield
    except HotswapError as error:
        if not notes:
            raise
        raise HotswapError("; ".join([*notes, str(error)])) from None


def without_auto(
    names: Names,
    targets: Sequence[Any],
    guide: Any,
    scales: Any,
    footprint: Footprint,
    sites: Callable[[], Sites],
) -> tuple[list[Any], Any, Any, tuple[str, ...]]:
    """Targets, guide and scales with what "auto" is in its place, and a note that says what.

    It is "resize" where guiding helps an enlargement, else "output" where the network gives scores of classes at
    about the image's size, else "paper". The image guides the first two: with any other guide it is "paper".
    """
    if not any(isinstance(x, str) and x == AUTO for x in targets):
        return list(targets), guide, scales, ()
    chosen, by_image = PAPER, isinstance(guide, str) and guide in (AUTO, INPUT)
    if names.observation is not None and by_image:
        if any(verdict(site, footprint).taken for site in sites()):
            chosen = RESIZE
        elif gives_scores(sites()):
            chosen = OUTPUT

    def named(key: Any, known_as: Any) -> Any:
        return known_as if isinstance(key, str) and key == AUTO else key

    def keyed(value: Any) -> Any:
        return {named(key, chosen): x for key, x in value.items()} if isinstance(value, Mapping) else value

    note = _NOTES[chosen] if by_image else _BY_ANOTHER
    return [named(x, chosen) for x in targets], keyed(guide), keyed(scales), (note,)
