"""Arms held against the control of their experiment."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.evidence.config import SEARCH_SEED, Experiment
from benchmarks.evidence.runs import Known, Row, best_rate, known
from benchmarks.evidence.statistics import Difference, difference


@dataclass(frozen=True)
class Compared:
    """An arm held against the control, on the seeds that both have."""

    name: str
    about: str
    rate: float
    values: dict[str, float]  # means after training, by metric
    before: Difference | None  # of the first metric, at the swap; None of what begins elsewhere
    after: dict[str, Difference]  # by metric
    relative: float  # mean of the first metric, over the control's

    @property
    def pairs(self) -> int:
        """How many seeds it shares with the control."""
        return next(iter(self.after.values())).pairs


def compared(experiment: Experiment, rows: Sequence[Row]) -> list[Compared]:
    """All arms that share a seed with the control, in the experiment's order; the control first."""
    held = known(experiment, rows)
    own = {arm: _by_seed(experiment, arm, held) for arm in experiment.arms}
    control = own[experiment.against]
    found = []
    for arm, runs in own.items():
        seeds = sorted(runs.keys() & control.keys())
        if not seeds:
            continue
        if not (experiment.arms[arm].trained or experiment.arms[experiment.against].trained):
            seeds = seeds[:1]  # seeds make no difference, which is no certainty
        ours, theirs = [runs[seed] for seed in seeds], [control[seed] for seed in seeds]
        names = [metric for metric in ours[0].after if metric in theirs[0].after]
        first = next(iter(experiment.metrics))
        swapped = experiment.start is not None
        found.append(
            Compared(
                arm,
                experiment.arms[arm].about,
                ours[0].rate,
                {name: _mean([row.after[name] for row in ours]) for name in names},
                difference([r.before[first] for r in ours], [r.before[first] for r in theirs]) if swapped else None,
                {name: difference([r.after[name] for r in ours], [r.after[name] for r in theirs]) for name in names},
                _mean([row.after[first] for row in ours]) / _mean([row.after[first] for row in theirs]),
            )
        )
    return sorted(found, key=lambda arm: arm.name != experiment.against)


def _by_seed(experiment: Experiment, arm: str, rows: Known) -> dict[int, Row]:
    """The compared runs of an arm, at its best rate; what is not trained is the same for all seeds."""
    rate = best_rate(experiment, arm, rows)
    found = {
        row.seed: row for row in rows.values() if row.arm == arm and row.rate == rate and row.seed != SEARCH_SEED
    }
    if found and not experiment.arms[arm].trained:
        return dict.fromkeys(experiment.compared_seeds, next(iter(found.values())))
    return found


def signed(experiment: Experiment, found: Difference, *, bold: bool = True) -> str:
    """A difference with its margin, bold where that leaves out 0."""
    text = f"{experiment.times * found.mean:+.{experiment.digits}f}"
    if found.pairs > 1:
        text += f" ± {experiment.times * found.margin:.{experiment.digits}f}"
    return f"**{text}**" if bold and found.is_clear else text


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
