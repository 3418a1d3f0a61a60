"""Ours and its rivals on the same scores: `python -m benchmarks.real.compare PAIR --scores FOLDER`."""

import datetime as dt
import functools
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import commit, processor
from benchmarks.real import scores
from benchmarks.real.memory import peak
from benchmarks.real.rivals import OURS, RIVALS, Coarse, Rival, Setting
from benchmarks.real.rows import read, write
from benchmarks.real.scores import CROPS, PAIRS, Pair, Sample
from hotswap.errors import HotswapError
from hotswap.searching.statistics import Gain, Sums, gain
from hotswap.searching.tasks import Measured, Task
from hotswap.versions import installed

RESULTS = Path(__file__).parents[1] / "results" / "real.csv"
PLAIN = "bilinear"  # what all are compared with
_TIMED, _ROUNDS = 5, 3  # images, and runs of each on them
_PACKAGES = ("torch", "numpy", "opencv-contrib-python-headless", "pydensecrf2")


@dataclass(frozen=True)
class Row:
    """One method on one pair, at the setting chosen for it. Quality in percent."""

    pair: str
    rival: str
    setting: str
    settings: int  # that it was chosen from
    chosen_on: int  # images
    images: int  # others, that the figures are of
    quality: float  # IoU, or mIoU
    quality_gain: float  # over bilinear
    quality_margin: float  # half the width of its 95 % interval, paired over images
    near: float  # the same within 3 pixels of the edges of the labels
    near_gain: float
    near_margin: float
    ms: float  # an image, on one thread
    mib: float  # that it adds at its peak, of one image
    date: str
    commit: str
    versions: str
    processor: str
    command: str


class Cost(NamedTuple):
    """Of one image, on one thread: time, and the memory that it adds at its peak."""

    ms: float
    mib: float


@click.command()
@click.argument("names", nargs=-1, type=click.Choice([*PAIRS, *CROPS]))
@click.option("--scores", "folder", type=click.Path(path_type=Path), required=True, help="Of benchmarks.real.scores.")
@click.option("--rival", "chosen", multiple=True, type=click.Choice(list(RIVALS)), help="May be given again.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=RESULTS, help="CSV; its rows of these are replaced."
)
def main(names: tuple[str, ...], folder: Path, chosen: tuple[str, ...], output: Path) -> None:
    """Choose a setting of each rival on some images, report on the others, and keep the rows."""
    torch.set_num_threads(1)
    try:
        for name in names or [*PAIRS, *CROPS]:
            samples = scores.read(folder / f"{name.removesuffix('_crops')}.pt")
            named = {key: RIVALS[key] for key in chosen or RIVALS}
            if name in PAIRS:
                rivals = {key: rival for key, rival in named.items() if not rival.slow}
            else:
                rivals = {key: rival for key, rival in named.items() if rival.slow or key in (PLAIN, OURS)}
            rows = compare(name, (PAIRS | CROPS)[name], samples, rivals)
            replaced = {(row.pair, row.rival) for row in rows}
            kept = [row for row in read(Row, output) if (row.pair, row.rival) not in replaced]
            write(ordered([*kept, *rows]), output)
    except HotswapError as error:
        raise click.ClickException(str(error)) from error


@torch.no_grad()
def compare(name: str, pair: Pair, samples: list[Sample], rivals: Mapping[str, Rival]) -> list[Row]:
    """Rows of the rivals whose packages are there, and a line about each on the screen."""
    choosing, reporting = pair.split(samples)
    if not choosing or not reporting:
        raise HotswapError(f"{name}: there must be more than {pair.choosing} images, got {len(samples)}")
    task = pair.task()
    quality, near = (metric.value for metric in task.metrics)
    settings: dict[str, Setting] = {}
    measured: dict[str, tuple[Sums, Sums]] = {PLAIN: _measured(pair, reporting, RIVALS[PLAIN], {})}
    for key, rival in rivals.items():
        if rival.is_missing:
            click.echo(f"{name} {key}: left out, as {rival.package} is not installed")
            continue
        settings[key] = rival.settings[0]
        if len(rival.settings) > 1:
            sums = [_measured(pair, choosing, rival, setting) for setting in rival.settings]
            both = [float(quality(a.sum(0)) + near(b.sum(0))) for a, b in sums]
            settings[key] = rival.settings[both.index(max(both))]
        if key != PLAIN:
            measured[key] = _measured(pair, reporting, rival, settings[key])
        first, second = gains(pair, measured[PLAIN], measured[key])
        click.echo(
            f"{name} {key} {settings[key]}: {first.swapped:.2%} ({100 * first.better:+.2f}), near edges "
            f"{second.swapped:.2%} ({100 * second.better:+.2f})"
        )
    costs = _costs(
        pair,
        [pair.parts(sample)[0] for sample in reporting[:_TIMED]],
        {key: (rivals[key], setting) for key, setting in settings.items()},
    )
    return [
        _row(name, rivals[key], key, settings[key], len(choosing), gains(pair, measured[PLAIN], measured[key]), cost)
        for key, cost in costs.items()
    ]


def ordered(rows: Sequence[Row]) -> list[Row]:
    """Rows by pair and rival, as these are listed."""
    pairs, rivals = [*PAIRS, *CROPS], list(RIVALS)
    return sorted(rows, key=lambda row: (pairs.index(row.pair), rivals.index(row.rival)))


def _labels(pair: Pair, sample: Sample, rival: Rival, setting: Setting) -> Tensor:
    return rival.labels(Coarse(sample.scores, sample.image, pair.align_corners), setting)


def _measured(pair: Pair, samples: Iterable[Sample], rival: Rival, setting: Setting) -> tuple[Sums, Sums]:
    """Rows of the two metrics, an image a row."""
    task, rows = pair.task(), list[dict[str, Sums]]()
    for sample in samples:
        measured = [_of_part(task, pair, part, rival, setting) for part in pair.parts(sample)]
        rows.append({m.name: np.stack([each[m.name] for each in measured]).sum(0) for m in task.metrics})
    first, second = (np.stack([row[metric.name] for row in rows]) for metric in task.metrics)
    return first, second


def _of_part(task: Task, pair: Pair, part: Sample, rival: Rival, setting: Setting) -> Measured:
    prepared = task.prepare(part.labels, (part.image.shape[1], part.image.shape[2]))
    return task.measure(_labels(pair, part, rival, setting)[None], prepared)


def gains(pair: Pair, plain: tuple[Sums, Sums], other: tuple[Sums, Sums]) -> tuple[Gain, Gain]:
    """By the metrics of a pair, of an image a row."""
    first, second = (
        gain(a, b, metric.value, higher_is_better=True)
        for a, b, metric in zip(plain, other, pair.task().metrics, strict=True)
    )
    return first, second


def _costs(pair: Pair, samples: list[Sample], runs: Mapping[str, tuple[Rival, Setting]]) -> dict[str, Cost]:
    """Milliseconds an image, the mean over images of the fastest of some runs, the methods in turn; memory of one."""
    least = {key: [math.inf] * len(samples) for key in runs}
    for _ in range(_ROUNDS):
        for index, sample in enumerate(samples):
            for key, (rival, setting) in runs.items():
                start = time.perf_counter()
                _labels(pair, sample, rival, setting)
                least[key][index] = min(least[key][index], 1000 * (time.perf_counter() - start))
    return {
        key: Cost(sum(least[key]) / len(samples), peak(functools.partial(_labels, pair, samples[0], rival, setting)))
        for key, (rival, setting) in runs.items()
    }


def _row(
    name: str, rival: Rival, key: str, setting: Setting, chosen_on: int, gains: tuple[Gain, Gain], cost: Cost
) -> Row:
    quality, near = gains
    return Row(
        pair=name,
        rival=key,
        setting=" ".join(f"{k}={v}" for k, v in setting.items()),
        settings=len(rival.settings),
        chosen_on=chosen_on if len(rival.settings) > 1 else 0,
        images=quality.images,
        **figures(quality, near),
        ms=round(cost.ms, 2),
        mib=round(cost.mib, 1),
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        commit=commit(),
        versions=" ".join(f"{k}={v}" for k, v in installed(_PACKAGES).items()),
        processor=processor(),
        command=f"python -m benchmarks.real.compare {name}",
    )


def figures(quality: Gain, near: Gain) -> dict[str, float]:
    """What a row says of both, in percent."""
    return {
        name + part: round(100 * value, 3)
        for name, each in (("quality", quality), ("near", near))
        for part, value in (("", each.swapped), ("_gain", each.better), ("_margin", each.margin))
    }


if __name__ == "__main__":
    main()
