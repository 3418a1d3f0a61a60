"""Carries out a recipe: builds, trains, measures, saves and resumes.

A run's folder holds `state.pt`, from which it goes on, the networks `best.safetensors` and `last.safetensors`, and at
the end `result.json`. Each is written in one step, so that a killed run leaves the old file or the new one.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from rich.console import Console
from torch import nn
from torch.utils.data import Dataset

import hotswap
from hotswap.errors import HotswapError, one_line
from hotswap.files.atomic import PathLike, check_writable, is_there
from recipes import building, checkpointing, results, tensorboard
from recipes.checkpointing import BEST, LAST, RESULT, STATE, Record, State
from recipes.config import Recipe
from recipes.datasets import Item
from recipes.reading import ALONE
from recipes.tasks import task
from recipes.training import NotFiniteError, Trainer, measure, progress, start

Result = dict[str, Any]


def finetune(
    recipes: Mapping[str, Recipe],
    folder: PathLike,
    *,
    resume: bool = False,
    max_steps: int | None = None,
    console: Console | None = None,
) -> dict[str, Result]:
    """Carry out the arms of a recipe one after another, each in the folder of its name.

    Args:
        recipes: see `recipes.reading.read`.
        folder: where to; created if it is missing.
        resume: go on with what is there.
        max_steps: stop each arm after so many steps in all; it can be resumed.
        console: where progress is drawn; None is quiet.

    Returns:
        What `result.json` holds, by arm.

    Raises:
        HotswapError: where it cannot be done, or a loss is no number; what was saved stays.
    """
    finished: dict[str, Result] = {}
    earlier: dict[str, Path] = {}
    for arm, recipe in recipes.items():
        inside = Path(folder) / arm
        finished[arm] = run(
            recipe, inside, label=arm, resume=resume, max_steps=max_steps, console=console, earlier=earlier
        )
        earlier[arm] = inside / LAST
    return finished


def run(
    recipe: Recipe,
    folder: PathLike,
    *,
    label: str = ALONE,
    resume: bool = False,
    max_steps: int | None = None,
    console: Console | None = None,
    earlier: Mapping[str, Path] | None = None,
) -> Result:
    """Carry out one recipe; see `finetune`. `earlier`: the checkpoints of the arms before it."""
    folder = Path(folder)
    state = _state(recipe, folder, resume)
    if state is not None and is_there(folder / RESULT):
        before: Result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if before["steps"] == before["steps_planned"]:
            return before
    accelerator = start(recipe.mixed_precision)
    seen = building.as_seen(recipe, building.dataset(recipe.data.train, recipe.protocol))
    validation = building.as_seen(recipe, building.dataset(recipe.data.validation, recipe.protocol))
    if state is None:
        network = building.network(recipe, seen, accelerator.device, earlier or {})
    else:
        network = building.network_again(recipe, seen, accelerator.device, state.plan)
    trainer = Trainer(network, seen, task(recipe.task), recipe, accelerator, building.example(seen, recipe.seed))
    if state is not None:
        try:
            trainer.load_state(state.trainer)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:  # whatever does not fit
            raise HotswapError(
                f"{str(folder / STATE)!r} is not the state of this network ({one_line(error)})"
            ) from error
    try:
        record = state.record if state else Record()
        return _Run(recipe, trainer, validation, folder, record, label).carry_out(max_steps, console)
    finally:
        trainer.finish()


def evaluate(recipe: Recipe, checkpoint: PathLike | None = None) -> dict[str, float]:
    """Metrics of a recipe's network on its validation data, with a checkpoint or as a run would start."""
    accelerator = start(recipe.mixed_precision)
    network = load(recipe, checkpoint, accelerator.device)
    validation = building.as_seen(recipe, building.dataset(recipe.data.validation, recipe.protocol))
    return _measured(network, validation, recipe, accelerator)


def load(recipe: Recipe, checkpoint: PathLike | None, device: torch.device) -> nn.Module:
    """A recipe's network, with the weights and swaps of a checkpoint or as a run would start."""
    if checkpoint is not None:
        return hotswap.load(checkpoint, model=building.plain(recipe)).to(device)
    seen = building.as_seen(recipe, building.dataset(recipe.data.train, recipe.protocol))
    return building.network(recipe, seen, device, {})


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints, of those that `accelerate launch` started."""
    return bool(PartialState().is_main_process)


def _state(recipe: Recipe, folder: Path, resume: bool) -> State | None:
    """The state to resume from, if there is one; creates the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HotswapError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from error
    for name in (STATE, BEST, LAST, RESULT):  # now, and not after the first hour
        check_writable(folder / name)
    if not is_there(folder / STATE):
        return None
    if not resume:
        raise HotswapError(f"{str(folder)!r} already holds a run: --resume goes on with it, or name another folder")
    state = checkpointing.read(folder / STATE)
    checkpointing.check_same(state.recipe, recipe, folder)
    return state


def _measured(
    network: nn.Module, validation: Dataset[Item], recipe: Recipe, accelerator: Accelerator
) -> dict[str, float]:
    return measure(
        network,
        validation,
        task(recipe.task).measure(),
        batch_size=recipe.evaluation.batch_size,
        accelerator=accelerator,
        workers=recipe.workers,
    )


@dataclass
class _Run:
    """One run, from where it stands to its end."""

    recipe: Recipe
    trainer: Trainer
    validation: Dataset[Item]
    folder: Path
    record: Record
    label: str

    def __post_init__(self) -> None:
        self.accelerator = self.trainer.accelerator
        self.main = self.accelerator.is_main_process
        self.losses: list[float] = []  # since the last measurement

    def carry_out(self, max_steps: int | None, console: Console | None) -> Result:
        trainer, settings = self.trainer, self.recipe.evaluation
        until = trainer.steps if max_steps is None else min(max_steps, trainer.steps)
        save_every = self.recipe.save_every or settings.every
        log = tensorboard.curves(self.folder, trainer.step, drawn=self.main)
        console = console if console is not None and self.main else Console(quiet=True)
        with log as self.draw, progress(self.label or "training", trainer.step, until, console) as bar:
            if settings.at_start and not self.record.history:
                self._measure()
            steps = trainer.run(until)
            while (loss := self._next(steps)) is not None:
                bar(loss)
                due = [every is not None and trainer.step % every == 0 for every in (settings.every, save_every)]
                last = trainer.step == until
                if due[0] or last:
                    self._measure()
                if any(due) or last:
                    self._save()
        return self._result()

    def _next(self, steps: Iterator[float]) -> float | None:
        with self._timed("training_seconds"):
            try:
                loss = next(steps, None)
            except NotFiniteError as error:
                raise HotswapError(f"{error}; {self._kept()}") from error
        if loss is not None:
            self.losses.append(loss)
            self.draw("loss", loss, self.trainer.step)
            self.draw("lr", self.trainer.optimizer.param_groups[0]["lr"], self.trainer.step)
        return loss

    def _kept(self) -> str:
        if not is_there(self.folder / LAST):
            return "nothing was saved before it"
        return f"the last good checkpoint is {str(self.folder / LAST)!r}"

    def _measure(self) -> None:
        """Evaluate the network, and save it if it is the best so far."""
        with self._timed("measuring_seconds"):
            metrics = _measured(self.trainer.averaged, self.validation, self.recipe, self.accelerator)
        loss = sum(self.losses) / len(self.losses) if self.losses else None
        entry = {"step": self.trainer.step, "loss": loss, "metrics": metrics}
        self.losses.clear()
        self.record.history.append(entry)
        for name, value in metrics.items():
            self.draw(f"validation/{name}", value, self.trainer.step)
        best = self.record.best
        if best is None or self._score(metrics) > self._score(best["metrics"]):
            self.record.best = entry
            self._save_network(BEST)

    def _score(self, metrics: Mapping[str, float]) -> float:
        """Higher is better; nan is the worst."""
        judged = self.trainer.task
        value = metrics[judged.best] if judged.higher_is_better else -metrics[judged.best]
        return -math.inf if math.isnan(value) else value

    def _save(self) -> None:
        """Save the network, then the state; a run killed in between resumes from the earlier state."""
        self._save_network(LAST)
        if self.main:
            plan = hotswap.status(self.trainer.model).plan
            checkpointing.write(self.folder / STATE, State(self.recipe, plan, self.trainer.state(), self.record))
        self.accelerator.wait_for_everyone()

    def _save_network(self, name: str) -> None:
        if self.main:
            hotswap.save(self.trainer.averaged, self.folder / name, building.recordable(self.recipe))
        self.accelerator.wait_for_everyone()

    def _result(self) -> Result:
        trainer, record = self.trainer, self.record
        counts = [(p.numel(), p.requires_grad) for p in trainer.model.parameters()]
        result = {
            "arm": self.label,
            "recipe": self.recipe.model_dump(mode="json"),
            "seed": self.recipe.seed,
            "steps": trainer.step,
            "steps_planned": trainer.steps,
            "metrics": record.history[-1]["metrics"],
            "best": record.best,
            "history": record.history,
            "parameters": {"all": sum(n for n, _ in counts), "trained": sum(n for n, trained in counts if trained)},
            "swaps": hotswap.status(trainer.averaged).to_dict(),
            "timings": {
                "training_seconds": record.training_seconds,
                "measuring_seconds": record.measuring_seconds,
                "ms_per_step": 1000 * record.training_seconds / max(trainer.step, 1),
            },
            "machine": results.machine(self.accelerator.device, self.accelerator.num_processes),
            "versions": results.versions(),
            "git": results.git_state(),
        }
        if self.main:
            results.write(self.folder / RESULT, result)
        self.accelerator.wait_for_everyone()
        return result

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self.record, name, getattr(self.record, name) + time.perf_counter() - began)
