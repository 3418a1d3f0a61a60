"""Which runs an experiment needs, and one run."""

import functools
import hashlib
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from benchmarks.evidence import controls
from benchmarks.evidence.config import SEARCH_SEED, START, Experiment, read
from recipes import building, engine
from recipes.checkpointing import LAST
from recipes.config import DataSet, Recipe
from recipes.datasets import Item
from recipes.tasks import task
from recipes.training import Trainer, measure, start

Metrics = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One run to make."""

    experiment: str
    arm: str  # START: the network that arms begin with
    seed: int
    rate: float


@dataclass(frozen=True)
class Row:
    """What came of a run. `before`: at the swap, before anything is trained. Rates of what is not trained are 0."""

    arm: str
    seed: int
    rate: float
    recipe: str  # a digest of all it was made by
    before: Metrics
    after: Metrics
    seconds: float


Known = dict[tuple[str, int, float], Row]  # by arm, seed and rate


def digest(experiment: Experiment, arm: str) -> str:
    """A name for all that decides what comes of an arm's runs, seed and rate aside."""
    start = None if experiment.start is None else _said(experiment.start_recipe(SEARCH_SEED))
    control = experiment.arms[arm].control
    parts = [
        _said(experiment.arm_recipe(arm, SEARCH_SEED, 0.0)),
        None if control is None else control.model_dump(mode="json"),
        {name: other.model_dump(mode="json") for name, other in experiment.further.items()},
        experiment.searched.model_dump(mode="json"),
        (start, experiment.starts),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


# Keys that rows are older than, with what they stood for.
_NEWER: dict[str, Any] = {"protocol": None}
_NEWER_OF_SWAPS: dict[str, Any] = {"gate": False, "projection": 0}


def _said(recipe: Recipe) -> dict[str, Any]:
    """A recipe's values; newer keys only where they say something, so that older rows hold."""
    values = _without(recipe.model_dump(mode="json"), _NEWER)
    return values | {"swaps": [_without(swap, _NEWER_OF_SWAPS) for swap in values["swaps"]]}


def _without(values: dict[str, Any], silent: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in silent or value != silent[key]}


def known(experiment: Experiment, rows: Iterable[Row]) -> Known:
    """The rows that still hold."""
    digests = {arm: digest(experiment, arm) for arm in experiment.arms}
    return {(row.arm, row.seed, row.rate): row for row in rows if row.recipe == digests.get(row.arm)}


def best_rate(experiment: Experiment, arm: str, found: Known) -> float | None:
    """The learning rate to compare an arm at: the best on the data searched on; None while rows are missing."""
    if not experiment.arms[arm].trained:
        return 0.0
    keys = [(arm, SEARCH_SEED, rate) for rate in experiment.rates]
    if any(key not in found for key in keys):
        return None
    metric = next(iter(experiment.metrics))
    sign = 1 if experiment.higher_is_better else -1
    return max((found[key] for key in keys), key=lambda row: sign * row.after[metric]).rate


def due(name: str, experiment: Experiment, rows: Iterable[Row]) -> list[Run]:
    """The runs that can be made now: those of the search first, then those that are compared."""
    found = known(experiment, rows)
    searches, compared = [], []
    for arm, settings in experiment.arms.items():
        if settings.trained:
            searches += [Run(name, arm, SEARCH_SEED, rate) for rate in experiment.rates]
        rate = best_rate(experiment, arm, found)
        if rate is not None:
            seeds = experiment.compared_seeds if settings.trained else experiment.compared_seeds[:1]
            compared += [Run(name, arm, seed, rate) for seed in seeds]
    compared.sort(key=lambda run: run.seed)  # a few seeds of all arms before all seeds of a few
    return [run for run in (*searches, *compared) if (run.arm, run.seed, run.rate) not in found]


def carry_out(runs: Iterable[Run], folder: Path, jobs: int, threads: int) -> Iterator[Row]:
    """Make runs, in processes beside each other, and give their rows as they come.

    Args:
        runs: of experiments in files; the starts they need are trained first.
        folder: where starts are kept.
        jobs: processes.
        threads: of each.
    """
    runs = list(runs)
    first = {Run(run.experiment, START, read(run.experiment).start_seed(run.seed), 0.0) for run in runs}
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        for done in as_completed([pool.submit(train_start, run, folder) for run in sorted(first, key=str)]):
            done.result()
        try:
            for row in as_completed([pool.submit(one, run, folder) for run in runs]):
                yield row.result()
        finally:
            pool.shutdown(cancel_futures=True)


def train_start(run: Run, folder: Path) -> Path | None:
    """The checkpoint that arms of a seed begin with, trained unless it is there; None where there is no start."""
    experiment = read(run.experiment)
    if experiment.start is None:
        return None
    seed = experiment.start_seed(run.seed)
    recipe = experiment.start_recipe(seed)
    name = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:12]
    own = folder / run.experiment / f"{START}-{seed}-{name}"
    engine.run(recipe, own, label=START, resume=own.exists())
    return own / LAST


def one(run: Run, folder: Path) -> Row:
    """Carry out one run."""
    began = time.perf_counter()
    experiment, checkpoint = read(run.experiment), train_start(run, folder)
    arm = experiment.arms[run.arm]
    recipe = experiment.arm_recipe(run.arm, run.seed, run.rate)
    searching = run.seed == SEARCH_SEED
    measured = _measured(experiment, recipe, experiment.searched if searching else recipe.data.validation, searching)
    accelerator = start("no")
    seen = building.as_seen(recipe, _data(recipe.data.train))
    example = building.example(seen, recipe.seed)
    earlier = {} if checkpoint is None else {START: checkpoint}
    network = building.network(recipe, seen, accelerator.device, earlier)
    network = controls.apply(network, arm.control, example).to(accelerator.device)
    before = measured(network)
    if arm.trained:
        trainer = Trainer(network, seen, task(recipe.task), recipe, accelerator, example)
        for _ in trainer.run(trainer.steps):
            pass
        trainer.finish()
        network = trainer.averaged
    after = measured(network) if arm.trained else before
    seconds = round(time.perf_counter() - began, 1)
    return Row(run.arm, run.seed, run.rate, digest(experiment, run.arm), before, after, seconds)


def _measured(experiment: Experiment, recipe: Recipe, data: DataSet, searching: bool) -> Callable[[Any], Metrics]:
    """A function that measures a network: by the recipe's task on `data`, and where runs are compared on more."""
    judged = [("", building.as_seen(recipe, _data(data)), recipe.task)]
    if not searching:
        judged += [
            (f"{name}_", building.as_seen(recipe, _data(other.data)), other.task)
            for name, other in experiment.further.items()
        ]

    def measured(network: Any) -> Metrics:
        found: Metrics = {}
        for prefix, dataset, settings in judged:
            size = recipe.evaluation.batch_size
            values = measure(network, dataset, task(settings).measure(), batch_size=size)
            found |= {f"{prefix}{key}": value for key, value in values.items()}
        return found

    return measured


def _data(named: DataSet) -> Dataset[Item]:
    return _kept_data(named.model_dump_json())


@functools.cache
def _kept_data(named: str) -> Dataset[Item]:
    """Made once in a process: drawing scenes takes as long as a small network's steps on them."""
    return building.dataset(DataSet.model_validate_json(named))
