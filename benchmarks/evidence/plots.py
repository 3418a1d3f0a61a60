"""A picture of an experiment: every arm's difference to the control, with its confidence interval."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.evidence.comparing import Compared
from benchmarks.evidence.config import Experiment
from hotswap.files.atomic import atomic_write

_HELPS, _HARMS, _UNCLEAR = "#1a7f37", "#b3261e", "#6e7781"


def differences(experiment: Experiment, arms: Sequence[Compared], path: Path) -> Path:
    """Draw one column a metric, one line an arm; the same rows give the same file."""
    _, *others = arms
    others = others[::-1]  # the first one on top
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "hotswap"  # or names inside the file are random
    figure, columns = plt.subplots(
        1,
        len(experiment.metrics),
        sharey=True,
        squeeze=False,
        figsize=(9, 1.2 + 0.27 * len(others)),
        layout="constrained",
    )
    for axes, (metric, label) in zip(columns[0], experiment.metrics.items(), strict=True):
        axes.axvline(0, color="black", linewidth=0.8)
        for place, arm in enumerate(others):
            found = arm.after[metric]
            better = (found.mean > 0) == experiment.higher_is_better
            color = (_HELPS if better else _HARMS) if found.is_clear else _UNCLEAR
            margin = experiment.times * found.margin if found.pairs > 1 else None
            axes.errorbar(experiment.times * found.mean, place, xerr=margin, fmt="o", color=color, markersize=4)
        axes.set_title(f"{label}, minus {experiment.against}", fontsize=9)
        axes.set_yticks(range(len(others)), [arm.name for arm in others], fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None}, facecolor="white")
    plt.close(figure)
    return path
