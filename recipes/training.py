"""The training loop. Every step depends only on the weights, the seed and the step's number.

So a run that is stopped and goes on is the run that was not, and several processes make the step that one would.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset

from hotswap.errors import HotswapError
from hotswap.network.dry_run import Inputs, device_of, mode
from recipes.batch_norms import OverProcesses
from recipes.config import Training
from recipes.datasets import Draws, Item, batches, chunks, length, moved, seeded
from recipes.optimisation import optimiser, rate
from recipes.tasks import Measure, Task, predict, target


class NotFiniteError(HotswapError):
    """The loss is not finite. The run cannot go on; the weights are those before the step."""


def start(mixed_precision: str | None = None) -> Accelerator:
    """Start Accelerate on the devices and processes that `accelerate launch` or the environment names.

    Args:
        mixed_precision: "no", "fp16", "bf16"; None takes what `accelerate launch` says.

    Raises:
        HotswapError: where the device cannot do it, or networks are to be split over processes.
    """
    # Accelerate keeps the precision of a process's first accelerator, and refuses another.
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision)
    except ValueError as error:
        raise HotswapError(f"mixed_precision {mixed_precision!r}: {error}") from error
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise HotswapError(
            f"recipes train whole networks on every process, and not with {accelerator.distributed_type.value}; "
            "launch them without it"
        )
    accelerator.gradient_accumulation_steps = 1  # the loop weighs each batch itself
    return accelerator


class Trainer:
    """A network in training.

    Args:
        model: trained in place; parameters that do not require a gradient stay as they are.
        dataset: what to train on.
        task: what it is trained by.
        settings: the optimiser, its rates, the length and so on.
        accelerator: see `start`.
        example: what the network takes.

    Raises:
        HotswapError: where the settings do not fit the network, the data or the processes.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset[Item],
        task: Task,
        settings: Training,
        accelerator: Accelerator,
        example: Inputs,
    ) -> None:
        batch = settings.batch_size * settings.accumulation
        if not 1 <= settings.batch_size <= length(dataset):
            raise HotswapError(
                f"batch_size must be from 1 to {length(dataset)}, the size of the data set, got {settings.batch_size}"
            )
        if settings.batch_size % accelerator.num_processes:
            raise HotswapError(
                f"batch_size must be a multiple of {accelerator.num_processes}, the number of processes, "
                f"got {settings.batch_size}"
            )
        self.unit = 1 if settings.epochs is None else max(1, length(dataset) // batch)  # steps in a unit of time
        self.steps: int = settings.steps or settings.epochs * self.unit  # type: ignore[operator]  # one of the two
        self.task, self.settings, self.accelerator, self.model = task, settings, accelerator, model
        self.draws = Draws(dataset, self.steps * batch, settings.seed)
        self.step = 0  # steps done
        optimizer = optimiser(model, settings.optimiser, example)
        self.rates = [group["lr"] for group in optimizer.param_groups]
        # The average is a copy, made before Accelerate gives the network a forward of its own for mixed precision.
        self.ema: AveragedModel | None = None
        if settings.ema is not None:
            average = get_ema_multi_avg_fn(settings.ema)
            self.ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True).to(accelerator.device)
        self.network, self.optimizer = accelerator.prepare(model, optimizer)

    @property
    def averaged(self) -> nn.Module:
        """The network to evaluate and to save: with the moving average of the weights if there is one."""
        return self.model if self.ema is None else self.ema.module

    def run(self, until: int) -> Iterator[float]:
        """Train until step `until`; yields the loss of each step.

        Raises:
            NotFiniteError: where a loss is no number.
        """
        settings, accelerator = self.settings, self.accelerator
        share = settings.batch_size // accelerator.num_processes  # of each batch, for this process
        first = accelerator.process_index * share
        numbers = chunks(
            range(self.step * settings.batch_size * settings.accumulation, len(self.draws)), settings.batch_size
        )
        loader = batches(self.draws, [batch[first : first + share] for batch in numbers], settings.workers)
        while self.step < until:
            yield self._step([next(loader) for _ in range(settings.accumulation)])

    def _step(self, items: list[Item]) -> float:
        settings, accelerator = self.settings, self.accelerator
        factor = rate(settings.schedule, self.step, self.steps, self.unit)
        for group, lr in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = lr * factor
        counted = self._over_processes(sum(self.task.count(truth) for _, truth in items))
        loss, seeds = 0.0, (settings.seed, self.step, accelerator.process_index)
        joined = OverProcesses() if accelerator.num_processes > 1 else nullcontext()
        with mode(self.model, training=True), seeded(*seeds), joined:
            for index, item in enumerate(items):
                with accelerator.no_sync(self.network) if index < len(items) - 1 else nullcontext():
                    loss += self._backward(item, counted)
        loss = self._over_processes(loss)
        if not math.isfinite(loss):
            self.optimizer.zero_grad()
            raise NotFiniteError(
                f"the loss is {loss} at step {self.step + 1}; lower optimiser.lr or set optimiser.clip"
            )
        if settings.optimiser.clip is not None:
            accelerator.clip_grad_norm_(self.model.parameters(), settings.optimiser.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.step += 1
        return loss

    def _backward(self, item: Item, counted: float) -> float:
        """Add the gradient of a batch; returns its share of the step's loss, a mean over everything that counts."""
        inputs, truth = (moved(part, self.accelerator.device) for part in item)
        prediction = predict(self.network, inputs, target(truth).shape[-2:])
        loss = self.task.total(prediction, truth) / max(counted, 1)
        self.accelerator.backward(loss * self.accelerator.num_processes)  # which takes the mean over processes
        return float(loss.detach())

    def _over_processes(self, number: float) -> float:
        """The sum over all processes."""
        if self.accelerator.num_processes == 1:
            return number
        total = torch.tensor(number, dtype=torch.float64, device=self.accelerator.device)
        return float(self.accelerator.reduce(total, "sum"))

    def finish(self) -> None:
        """Leave the network as a plain module."""
        self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)

    def state(self) -> dict[str, Any]:
        """Everything needed to resume."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimiser": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Resume from `state`."""
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimiser"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])


@contextmanager
def progress(label: str, done: int, steps: int, console: Console | None) -> Iterator[Any]:
    """A progress bar; yields a function to call with the loss of each step."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
    with bar:
        task = bar.add_task(label, total=steps, completed=done, loss=float("nan"))
        yield lambda loss: bar.update(task, advance=1, loss=loss)


@torch.no_grad()
def measure(
    model: nn.Module,
    dataset: Dataset[Item],
    measure: Measure,
    *,
    batch_size: int,
    accelerator: Accelerator | None = None,
    workers: int = 0,
) -> dict[str, float]:
    """Metrics of a network over a data set; each process takes its share of the images.

    Runs on the device and leaves the modes the network has; random crops are the same each time.
    """
    processes, index = (1, 0) if accelerator is None else (accelerator.num_processes, accelerator.process_index)
    if length(dataset) < processes:
        raise HotswapError(f"to measure needs at least {processes} images, one a process, got {length(dataset)}")
    device = device_of(model)
    numbers = chunks(range(index, length(dataset), processes), batch_size)
    with mode(model, training=False), seeded(0):
        for item in batches(dataset, numbers, workers):
            inputs, truth = (moved(part, device) for part in item)
            measure.update(predict(model, inputs, target(truth).shape[-2:]), truth)
    return measure.compute()
