"""What a plan says of every enlargement of a network, those that it leaves among them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from hotswap.tables import render


@dataclass(frozen=True)
class Considered:
    """One enlargement, and whether guiding it helps."""

    alias: str
    name: str  # the module, or the call
    times: str  # the factor from the coarse map over all enlargements in a row, as x8
    factor: float
    place: str  # "scores", "mixed ...", "features: ...", "unknown: ..."
    taken: bool  # by the target "resize"
    verdict: str  # the same with its reason

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self)
        del values["times"]
        return values


def table(enlargements: Iterable[Considered]) -> str:
    """A line for each."""
    columns = ("alias", "enlargement", "factor", "place", '"resize"')
    return render(columns, [(each.alias, each.name, each.times, each.place, each.verdict) for each in enlargements])
