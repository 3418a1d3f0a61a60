"""What was found for one network by one route."""

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "runtimes.csv"
ALLOWED = 1e-4  # of the largest output, as of exports
MORE = 1.1  # than the plain network's error, where a route is not exact


@dataclass(frozen=True)
class Row:
    """Numbers are nan where something failed, or was not run."""

    network: str
    route: str
    gap_plain: float  # from PyTorch, see `measure.gap`
    gap_swapped: float
    seconds_plain: float  # to the first result: export, conversion, compilation
    seconds_swapped: float
    ms_plain: float  # an inference, the fastest of some, in turn
    ms_swapped: float
    why: str  # where the swapped network does not run, or is wrong
    version: str  # of the runtime
    date: str
    commit: str
    versions: str
    processor: str

    @property
    def ratio(self) -> float:
        """The swapped network's time, of the plain one's."""
        return self.ms_swapped / self.ms_plain
