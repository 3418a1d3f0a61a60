"""Before and after fine-tuning, plain and guided: `python -m benchmarks.real.finetune NAME --nets FOLDER`."""

import copy
import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import hotswap
from benchmarks.harness import commit, processor
from benchmarks.real.camvid import VOID, Frame, frames, normalised
from benchmarks.real.front import Front, behind, front_of
from benchmarks.real.networks import NETWORKS
from benchmarks.real.rows import read, write
from benchmarks.real.scores import PAIRS
from benchmarks.real.train import DECAY, batches, trained
from hotswap.errors import HotswapError
from hotswap.versions import installed

RESULTS = Path(__file__).parents[1] / "results" / "real_finetuned.csv"
RATE = 2e-4  # a tenth of the training's
BEFORE, SWAPPED, TUNED, TUNED_THEN_SWAPPED, SWAPPED_THEN_TUNED = (
    "plain",
    "swapped",
    "plain, tuned",
    "plain, tuned, then swapped",
    "swapped, then tuned",
)
ARMS = (BEFORE, SWAPPED, TUNED, TUNED_THEN_SWAPPED, SWAPPED_THEN_TUNED)


@dataclass(frozen=True)
class Tuned:
    """One arm of one seed. Quality in percent: mIoU, and within 3 pixels of the labels' edges."""

    network: str
    seed: int  # of the crops; the trained network is the same
    arm: str
    steps: int
    rate: float
    quality: float
    near: float
    images: int
    date: str
    commit: str
    versions: str
    processor: str
    command: str


@click.command()
@click.argument("name", type=click.Choice(sorted(NETWORKS)))
@click.option("--nets", type=click.Path(exists=True, path_type=Path), required=True, help="Of benchmarks.real.train.")
@click.option("--seeds", type=int, default=5, show_default=True)
@click.option("--steps", type=int, default=60, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, help="CSV; seeds that it has are kept.")
def main(name: str, nets: Path, seeds: int, steps: int, output: Path) -> None:
    """Tune the decoder of a trained network, with and without a guided enlargement, on the same crops."""
    try:
        base, front = trained(name, 1, nets), front_of(name)
        for seed in range(1, seeds + 1):
            rows = read(Tuned, output)
            if any((row.network, row.seed) == (name, seed) for row in rows):
                continue
            write([*rows, *_run(name, base, seed, steps, front)], output)
    except HotswapError as error:
        raise click.ClickException(str(error)) from error


def _run(name: str, base: nn.Module, seed: int, steps: int, front: Front | None) -> Iterator[Tuned]:
    reporting = frames("val")[PAIRS[f"camvid_{name}"].choosing :]
    networks = {BEFORE: base, SWAPPED: _swapped(base)}
    networks[TUNED] = tuned(base, seed, steps, front)
    networks[TUNED_THEN_SWAPPED] = _swapped(networks[TUNED])
    networks[SWAPPED_THEN_TUNED] = tuned(networks[SWAPPED], seed, steps, front)
    for arm, network in networks.items():
        quality, near = _measured(name, network, reporting, front)
        click.echo(f"{name} {seed} {arm}: {quality:.2f}, near edges {near:.2f}")
        yield Tuned(
            network=name,
            seed=seed,
            arm=arm,
            steps=steps,
            rate=RATE,
            quality=round(quality, 3),
            near=round(near, 3),
            images=len(reporting),
            date=dt.datetime.now(dt.UTC).date().isoformat(),
            commit=commit(),
            versions=" ".join(f"{k}={v}" for k, v in installed(("torch",)).items()),
            processor=processor(),
            command=f"python -m benchmarks.real.finetune {name}",
        )


def _swapped(network: nn.Module) -> nn.Module:
    image = normalised(frames("train")[0].image)[None]
    return hotswap.convert(copy.deepcopy(network), "resize", "input", calibrate_on=[image], example_inputs=image)


def tuned(network: nn.Module, seed: int, steps: int, front: Front | None) -> nn.Module:
    """A copy after so many steps; the encoder and the statistics of batch normalisation stay as they are."""
    torch.manual_seed(seed)
    model = copy.deepcopy(network).eval()
    for key, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and not key.startswith("encoder."))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    with behind(front, model):
        for images, labels in batches(front, steps, seed):
            loss = F.cross_entropy(model(images), labels, ignore_index=VOID)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return model


@torch.no_grad()
def _measured(name: str, network: nn.Module, samples: list[Frame], front: Front | None) -> tuple[float, float]:
    task = PAIRS[f"camvid_{name}"].task()
    rows = []
    with behind(front, network):
        for frame in samples:
            image = normalised(frame.image)[None] if front is None else front.show((frame, False))[0]
            predicted = network(image).max(1).indices
            height, width = frame.labels.shape
            rows.append(task.measure(predicted, task.prepare(frame.labels.long(), (height, width))))
    quality, near = (
        100 * float(metric.value(np.stack([row[metric.name] for row in rows]).sum(0))) for metric in task.metrics
    )
    return quality, near


if __name__ == "__main__":
    main()
