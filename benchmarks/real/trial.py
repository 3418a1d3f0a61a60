"""A fair trial of swaps, at one budget: `python -m benchmarks.real.trial run FILE`, where `keep` made the file.

`keep` computes once what the frozen part of a trained network makes of each frame; `settle` tunes the decoder behind
it until plain tuning gains nothing; `run` goes on from there, every arm on the same crops in the same order. Rates
are chosen on one part of the frames, arms compared on another.
"""

import copy
import datetime as dt
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.harness import commit, processor
from benchmarks.real import kept
from benchmarks.real.behind import PLACES
from benchmarks.real.camvid import VOID, frames
from benchmarks.real.kept import Kept, Sample
from benchmarks.real.rows import read, write
from benchmarks.real.scores import PAIRS
from benchmarks.real.train import trained
from benchmarks.real.trial_arms import ARMS, PLAIN, Arm, added, arms, opened, optimiser
from hotswap.errors import HotswapError
from hotswap.versions import installed

RESULTS = Path(__file__).parents[1] / "results" / "real_trial.csv"
SEARCH, SETTLING, CALIBRATING = 0, 1000, 2  # seeds of the search and of the first round of `settle`; batches
GAINED = 0.1  # points, the mean of mIoU and near edges: a round that gains less gains nothing


@dataclass(frozen=True)
class Trial:
    """One run of one arm. Quality in percent: mIoU, and within 3 pixels of the labels' edges."""

    network: str
    arm: str
    seed: int  # of the crops; 0 where rates are chosen
    steps: int
    rate: float
    quality: float
    near: float
    images: int
    added: int  # trained parameters more than the plain decoder's
    opened: float  # the mean |a| of its gates in the end
    seconds: float
    date: str
    commit: str
    versions: str
    processor: str
    command: str


@click.group()
def main() -> None:
    """Whether swaps gain anything over the plain network and over controls."""


@main.command()
@click.argument("name", type=click.Choice(sorted(PLACES)))
@click.option("--nets", type=click.Path(exists=True, path_type=Path), required=True, help="Of benchmarks.real.train.")
@click.option("--train", default=367, show_default=True, help="Frames to train on, spread over all.")
@click.option("--packed", type=float, help="MiB: a smaller file, of as many frames as fit, for another machine.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")
@torch.no_grad()
def keep(name: str, nets: Path, train: int, packed: float | None, out: Path) -> None:
    """Write what the frozen part of a trained network makes of CamVid's frames, and its decoder."""
    torch.set_num_threads(1)
    try:
        network, pair = trained(name, 1, nets), PAIRS[f"camvid_{name}"]
        val = frames("val")
        parts = [kept.spread(frames("train"), train), val[: pair.choosing : pair.step], val[pair.choosing :]]
        if packed is None:
            samples = [[kept.sample(name, network, frame) for frame in part] for part in parts]
            kept.write(name, network, samples, out)
        else:
            kept.pack(name, network, parts, out, packed)
    except (HotswapError, ImportError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{out}: {out.stat().st_size / 2**20:.0f} MiB")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--steps", default=400, show_default=True, help="Of a round.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write.")
def settle(file: Path, steps: int, out: Path) -> None:
    """Tune a kept decoder with nothing swapped, in rounds, until no rate gains on the frames to choose on."""
    torch.set_num_threads(1)
    try:
        given = kept.read(file)
        bench = Bench(given, steps, torch.device("cpu"))
        for count, (rate, quality, near) in enumerate(bench.settled()):
            kept.write(given.name, bench.decoder, given[2:], out)
            click.echo(
                f"{given.name}, {count * steps} steps, the last at {rate:g}: {quality:.2f}, near edges {near:.2f}"
            )
    except HotswapError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--seeds", default=5, show_default=True)
@click.option("--steps", default=80, show_default=True)
@click.option("--arm", "chosen", multiple=True, help="These arms alone. May be given again.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default=RESULTS, help="CSV; runs that it has stay.")
def run(file: Path, seeds: int, steps: int, chosen: tuple[str, ...], device: str, output: Path) -> None:
    """Make the runs that have no row yet; it can be stopped at any time."""
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        given = kept.read(file, torch.device(device))
        bench, wanted = Bench(given, steps, torch.device(device)), arms(PLACES[given.name], chosen)
        for row in bench.runs(wanted, seeds, read(Trial, output)):
            write([*read(Trial, output), row], output)
            click.echo(f"{row.network} {row.arm} {row.seed} {row.rate:g}: {row.quality:.2f}, near edges "
                       f"{row.near:.2f}, {row.seconds:.0f} s")  # fmt: skip
    except HotswapError as error:
        raise click.ClickException(str(error)) from error


class Bench:
    """Runs of arms on what was kept of one network."""

    def __init__(self, given: Kept, steps: int, device: torch.device) -> None:
        self.given, self.steps, self.device = given, steps, device
        self.place, self.task = PLACES[given.name], PAIRS[f"camvid_{given.name}"].task()
        self.decoder = given.decoder.to(device)
        self.calibrating = [batch.inputs for batch in self._batches(CALIBRATING, SEARCH)]
        self._prepared: dict[int, Any] = {}

    def runs(self, wanted: dict[str, Arm], seeds: int, rows: list[Trial]) -> Iterator[Trial]:
        """Rows of what has none: the search of each arm, then all arms of a seed before the next seed."""
        rows = list(rows)
        for seed in range(seeds + 1):
            for key, arm in wanted.items():
                steps = self.steps if arm.trained else 0
                for rate in self._rates(key, arm, seed, rows):
                    done = {(row.network, row.arm, row.seed, row.steps, row.rate) for row in rows}
                    if (self.given.name, key, seed, steps, rate) not in done:
                        rows.append(self.one(key, arm, seed, rate))
                        yield rows[-1]

    def settled(self) -> Iterator[tuple[float, float, float]]:
        """Tune the decoder as it is, by rounds of the best rate, while they gain: rate and quality after each."""
        plain = ARMS[PLAIN]
        best, seed = (0.0, *self._measured(self.decoder, plain, self.given.choosing)), SETTLING
        while True:
            yield best
            rounds = []
            for rate in self.place.rates:
                network = copy.deepcopy(self.decoder)
                self._tune(network, plain, seed, rate)
                rounds.append(((rate, *self._measured(network, plain, self.given.choosing)), network))
            found, network = max(rounds, key=lambda each: sum(each[0][1:]))
            if sum(found[1:]) < sum(best[1:]) + 2 * GAINED:
                return
            best, self.decoder, seed = found, network, seed + 1

    def _rates(self, key: str, arm: Arm, seed: int, rows: list[Trial]) -> tuple[float, ...]:
        if not arm.trained:
            return (0.0,) if seed == SEARCH + 1 else ()  # once, where arms are compared
        if seed == SEARCH:
            return self.place.rates
        found = [r for r in rows if (r.network, r.arm, r.seed, r.steps) == (self.given.name, key, SEARCH, self.steps)]
        return (max(found, key=lambda row: row.quality + row.near).rate,)

    def one(self, key: str, arm: Arm, seed: int, rate: float) -> Trial:
        """One run."""
        began = time.perf_counter()
        torch.manual_seed(seed)
        network = arm.network(self.decoder, self.place, self.calibrating)
        if arm.trained:
            self._tune(network, arm, seed, rate)
        samples = self.given.choosing if seed == SEARCH else self.given.reporting
        quality, near = self._measured(network, arm, samples)
        return Trial(
            network=self.given.name,
            arm=key,
            seed=seed,
            steps=self.steps if arm.trained else 0,
            rate=rate,
            quality=round(quality, 3),
            near=round(near, 3),
            images=len(samples),
            added=added(network, self.decoder),
            opened=round(opened(network), 4),
            seconds=round(time.perf_counter() - began, 1),
            date=dt.datetime.now(dt.UTC).date().isoformat(),
            commit=commit(),
            versions=" ".join(f"{k}={v}" for k, v in installed(("torch",)).items()),
            processor=processor() if self.device.type == "cpu" else torch.cuda.get_device_name(self.device),
            command=f"python -m benchmarks.real.trial run {self.given.name} --steps {self.steps}",
        )

    def _batches(self, steps: int, seed: int) -> Iterator[kept.Batch]:
        draw = kept.wholes if self.place.whole else kept.crops
        return draw(self.given.train, steps, self.place.batch, seed, self.device)

    def _tune(self, network: nn.Module, arm: Arm, seed: int, rate: float) -> None:
        """Steps; the statistics of batch normalisation stay as they are, and nothing is dropped."""
        learning = optimiser(network, self.decoder, rate, self.place.slower)
        most = [group["lr"] for group in learning.param_groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(learning, most, total_steps=self.steps)
        for inputs, labels in self._batches(self.steps, seed):
            seen = arm.see(inputs, tuple(x.roll(1, 0) for x in inputs))
            loss = F.cross_entropy(network(*seen), labels, ignore_index=VOID)
            learning.zero_grad()
            loss.backward()
            learning.step()
            schedule.step()

    @torch.no_grad()
    def _measured(self, network: nn.Module, arm: Arm, samples: list[Sample]) -> tuple[float, float]:
        rows = []
        for sample, other in zip(samples, samples[1:] + samples[:1], strict=True):
            inputs, others = (kept.batch([x], self.device).inputs for x in (sample, other))
            predicted = network(*arm.see(inputs, others)).max(1).indices.cpu()
            rows.append(self.task.measure(predicted, self._truth(sample)))
        quality, near = (
            100 * float(metric.value(np.stack([row[metric.name] for row in rows]).sum(0)))
            for metric in self.task.metrics
        )
        return quality, near

    def _truth(self, sample: Sample) -> Any:
        """Labels, with what the task computes of them once."""
        if id(sample) not in self._prepared:
            height, width = sample.labels.shape
            self._prepared[id(sample)] = self.task.prepare(sample.labels.long(), (height, width))
        return self._prepared[id(sample)]


if __name__ == "__main__":
    main()
