"""The tables and plots of docs/evidence.md, between marks in it; the text around them is written by people."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.evidence import config, plots, results
from benchmarks.evidence.config import SEARCH_SEED, Experiment
from benchmarks.evidence.runs import Known, Row, best_rate, known
from benchmarks.evidence.statistics import Difference, difference
from hotswap.files import atomic_write

PAGE = Path(__file__).parents[2] / "docs" / "evidence.md"
PLOTS = PAGE.parent / "evidence"


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


def table(experiment: Experiment, arms: Sequence[Compared]) -> str:
    """Markdown: the control's figures, and what each arm adds to them."""
    control, *others = arms
    metrics, times = experiment.metrics, experiment.times
    digits = experiment.digits
    stated = ", ".join(f"{label} {times * control.values[name]:.{digits}f}" for name, label in metrics.items())
    rate = f" (learning rate {control.rate:g})" if control.rate else ""
    about = (
        f"`{control.name}` ({control.about}), after training: **{stated}**{rate}; {control.pairs} seeds. The others "
        "against it, as the mean of paired differences ± half of the 95 % confidence interval (Student's t), bold "
        "where that leaves out 0:"
    )
    first, *more = metrics
    head = ["arm", "what", *(["at the swap"] if control.before else []), f"{metrics[first]} after", "better in"]
    head += [f"{metrics[name]} after" for name in more]
    head += ["of its error"] if not experiment.higher_is_better else []
    head += ["rate"]
    lines = [about, "", _line(head), _line(["---"] * len(head))]
    for arm in others:
        cells = [f"`{arm.name}`", arm.about]
        cells += [_signed(experiment, arm.before, bold=False)] if arm.before else []
        won = arm.after[first].positive if experiment.higher_is_better else arm.after[first].negative
        cells += [_signed(experiment, arm.after[first]), f"{won} of {arm.after[first].pairs}"]
        cells += [_signed(experiment, arm.after[name]) for name in more]
        cells += [f"{arm.relative:.2f}"] if not experiment.higher_is_better else []
        cells += [f"{arm.rate:g}" if arm.rate else "-"]
        lines.append(_line(cells))
    return "\n".join(lines)


def block(name: str, experiment: Experiment, rows: Sequence[Row]) -> str:
    """What stands between an experiment's marks."""
    arms = compared(experiment, rows)
    if not arms:
        return f"{experiment.question}\n\nNot run yet: `python -m benchmarks.evidence run {name}`."
    needed = len(experiment.rates) + experiment.seeds
    total = sum(needed if arm.trained else 1 for arm in experiment.arms.values())
    done = len(known(experiment, rows))
    parts = [f"**{experiment.question}**", " ".join(experiment.setting.split())]
    if done < total:
        parts.append(f"Not finished: {done} of {total} runs are there.")
    parts += [table(experiment, arms), f"![differences to {experiment.against}](evidence/{name}.svg)"]
    return "\n\n".join(parts)


def write() -> list[Path]:
    """Write the page and its plots from the rows there are, and give what was written."""
    text, written = PAGE.read_text(encoding="utf-8"), [PAGE]
    for name in config.names():
        experiment, rows = config.read(name), results.read(name)
        text = filled(text, name, block(name, experiment, rows))
        if arms := compared(experiment, rows):
            written.append(plots.differences(experiment, arms, PLOTS / f"{name}.svg"))
    with atomic_write(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return written


def filled(text: str, name: str, content: str) -> str:
    """A page with something else between the marks of an experiment.

    Raises:
        ValueError: where the page does not have them once.
    """
    begin, end = f"<!-- begin {name}: written by benchmarks.evidence -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"docs/evidence.md must have the marks {begin!r} and {end!r}, once each")
    return re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{content}\n{end}", text, flags=re.DOTALL
    )


def _by_seed(experiment: Experiment, arm: str, rows: Known) -> dict[int, Row]:
    """The compared runs of an arm, at its best rate; what is not trained is the same for all seeds."""
    rate = best_rate(experiment, arm, rows)
    found = {
        row.seed: row for row in rows.values() if row.arm == arm and row.rate == rate and row.seed != SEARCH_SEED
    }
    if found and not experiment.arms[arm].trained:
        return dict.fromkeys(experiment.compared_seeds, next(iter(found.values())))
    return found


def _signed(experiment: Experiment, found: Difference, *, bold: bool = True) -> str:
    text = f"{experiment.times * found.mean:+.{experiment.digits}f}"
    if found.pairs > 1:
        text += f" ± {experiment.times * found.margin:.{experiment.digits}f}"
    return f"**{text}**" if bold and found.is_clear else text


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
