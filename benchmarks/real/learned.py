"""Networks whose last layers are learned upsamplers: `python -m benchmarks.real.learned FILE`, of trial's `keep`.

The decoder of EfficientNet-Lite0 at once, with its last enlargement replaced by a layer that is learned, and trained
on with it. Then nothing is trained: K between a fine pixel and each coarse one that it comes from multiplies their
part of the layer; or the scores are guided behind the network, by the target "output_guided".
"""

import copy
import datetime as dt
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hotswap
from benchmarks.harness import commit, processor
from benchmarks.real import kept
from benchmarks.real.behind import AtOnceBehind
from benchmarks.real.camvid import CLASSES, MEAN, STD, VOID
from benchmarks.real.compare import figures, gains
from benchmarks.real.kept import Kept, Sample
from benchmarks.real.rows import read, write
from benchmarks.real.scores import PAIRS
from hotswap.choices import LAB
from hotswap.errors import HotswapError
from hotswap.searching.statistics import Gain, Sums
from hotswap.targets.guide_spaces import SCALES
from hotswap.versions import installed
from pac_ops import srgb_to_lab

RESULTS = Path(__file__).parents[1] / "results" / "real_learned.csv"
FACTOR, WIDTH, BATCH = 8, 96, 6
RATES = (1e-3, 4e-4)  # of the layer, and of the decoder before it
TRIED = (2.0, 4.0, 8.0, 12.0)  # scales of K in the layer
PLAIN, TAPS, BEHIND = "plain", "K in the layer", "output_guided"
PAIR = PAIRS["camvid_at_once"]
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Learned:
    """One arm on one network. Quality in percent."""

    upsampler: str
    arm: str
    scale: float  # of the guide, in Lab
    steps: int  # of training, before anything is guided
    images: int
    quality: float  # mIoU
    quality_gain: float
    quality_margin: float  # half the width of its 95 % interval, paired over images
    near: float
    near_gain: float
    near_margin: float
    date: str
    commit: str
    versions: str
    processor: str
    command: str


def _transposed() -> nn.Module:
    return nn.ConvTranspose2d(WIDTH, len(CLASSES), 2 * FACTOR, FACTOR, FACTOR // 2, bias=False)


def _shuffle() -> nn.Module:
    conv = nn.Conv2d(WIDTH, len(CLASSES) * FACTOR**2, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.PixelShuffle(FACTOR))


def _steps() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(WIDTH, 48, 2, 2), nn.ReLU(),
        nn.ConvTranspose2d(48, 32, 2, 2), nn.ReLU(), nn.ConvTranspose2d(32, len(CLASSES), 2, 2),
    )  # fmt: skip


UPSAMPLERS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "transposed": ("a transposed convolution of 16 x 16, stride 8", _transposed),
    "shuffle": ("a convolution of 3 x 3 and a pixel shuffle by 8", _shuffle),
    "steps": ("three transposed convolutions of 2 x 2, stride 2, with ReLUs", _steps),
}


class Upsampling(nn.Module):
    """The decoder behind the encoder's maps; called as `AtOnceBehind` is."""

    def __init__(self, decoder: AtOnceBehind, upsampler: nn.Module) -> None:
        super().__init__()
        self.decoder, self.upsampler = decoder, upsampler

    def features(self, *maps: Tensor) -> Tensor:
        """What is upsampled, [B, WIDTH, h, w], of the maps at 1/8, 1/16 and 1/32."""
        features: Tensor = self.decoder.head[:-1](self.decoder.joined(maps))
        return features

    def forward(self, image: Tensor, early: Tensor, *maps: Tensor) -> Tensor:
        """Scores of the classes, [B, 11, H, W]."""
        scores: Tensor = self.upsampler(self.features(*maps))
        return scores


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--steps", default=400, show_default=True)
@click.option("--upsampler", "chosen", multiple=True, type=click.Choice(list(UPSAMPLERS)), help="May be given again.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=RESULTS, help="CSV; its rows of these are replaced."
)
def main(file: Path, steps: int, chosen: Sequence[str], output: Path) -> None:
    """Train each network, guide it, and keep the rows."""
    torch.set_num_threads(1)
    try:
        given = kept.read(file)
        for name in chosen or UPSAMPLERS:
            rows = list(compare(name, trained(given, name, steps), given, steps))
            others = [row for row in read(Learned, output) if row.upsampler != name]
            ordered = sorted([*others, *rows], key=lambda row: list(UPSAMPLERS).index(row.upsampler))
            write(ordered, output)
    except HotswapError as error:
        raise click.ClickException(str(error)) from error


def trained(given: Kept, name: str, steps: int, seed: int = 1) -> Upsampling:
    """The kept decoder with another upsampler, after so many steps; its batch normalisation stays as it is."""
    torch.manual_seed(seed)
    assert isinstance(given.decoder, AtOnceBehind)
    network = Upsampling(copy.deepcopy(given.decoder), UPSAMPLERS[name][1]()).eval().requires_grad_(True)
    parts = (network.upsampler.parameters(), network.decoder.parameters())
    groups = [{"params": part, "lr": rate} for part, rate in zip(parts, RATES, strict=True)]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, list(RATES), total_steps=steps)
    for inputs, labels in kept.crops(given.train, steps, BATCH, seed, _CPU):
        loss = F.cross_entropy(network(*inputs), labels, ignore_index=VOID)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network


@torch.no_grad()
def compare(name: str, network: Upsampling, given: Kept, steps: int) -> list[Learned]:
    """Rows of the arms, and a line about each on the screen."""
    space = hotswap.GuideSpace(LAB, MEAN, STD)
    example = kept.batch(given.choosing[:1], _CPU).inputs
    behind = hotswap.convert(network, "output_guided", space=space, example_inputs=example)
    arms: dict[str, tuple[float, Callable[..., Tensor]]] = {PLAIN: (0.0, network), BEHIND: (SCALES[LAB], behind)}
    if name != "steps":  # there each fine pixel comes from one coarse one: normalised, K is 1
        scale = max(TRIED, key=lambda s: sum(_values(_measured(_guided_taps(network, s), given.choosing))))
        arms[TAPS] = (scale, _guided_taps(network, scale))
    plain, rows = _measured(network, given.reporting), []
    for arm, (scale, run) in arms.items():
        quality, near = gains(PAIR, plain, _measured(run, given.reporting))
        click.echo(f"{name} {arm} {scale:g}: {quality.swapped:.2%} ({100 * quality.better:+.2f}), "
                   f"near edges {near.swapped:.2%} ({100 * near.better:+.2f})")  # fmt: skip
        rows.append(_row(name, arm, scale, steps, quality, near))
    return rows


def _guided_taps(network: Upsampling, scale: float) -> Callable[..., Tensor]:
    def run(image: Tensor, early: Tensor, *maps: Tensor) -> Tensor:
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (MEAN, STD))
        guide = scale * srgb_to_lab(image * std + mean)
        return guided_transposed(network.features(*maps), guide, as_transposed(network.upsampler), FACTOR)

    return run


def as_transposed(upsampler: nn.Module) -> Tensor:
    """The weights of the transposed convolution that an upsampler is: [inputs, outputs, k, k]."""
    if isinstance(upsampler, nn.ConvTranspose2d):
        return upsampler.weight
    conv: Any = upsampler[0]  # type: ignore[index]
    inputs, (height, width) = conv.in_channels, conv.kernel_size
    parts = conv.weight.view(-1, FACTOR, FACTOR, inputs, height, width)  # of a correlation: its last tap comes first
    weight: Tensor = parts.flip(4, 5).permute(3, 0, 4, 1, 5, 2)
    return weight.reshape(inputs, -1, height * FACTOR, width * FACTOR)


def guided_transposed(x: Tensor, guide: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A transposed convolution to the guide's size, each coarse pixel's part times K, over the mean of K.

    The mean is weighted by the mean of |weight| over channels, so that a bilinear one is a guided enlargement.
    """
    total = torch.zeros(x.shape[0], weight.shape[1], *guide.shape[2:])
    kernels, plain = torch.zeros(1, 1, *guide.shape[2:]), torch.zeros(1, 1, *guide.shape[2:])
    coarse = F.avg_pool2d(guide, stride)
    before = (weight.shape[2] - stride) // 2
    for top, left in itertools.product(range(0, weight.shape[2], stride), repeat=2):
        part = weight[:, :, top : top + stride, left : left + stride]
        lengths = part.abs().mean((0, 1), keepdim=True)

        def placed(y: Tensor, weight: Tensor, top: int = top, left: int = left) -> Tensor:
            made = F.conv_transpose2d(y, weight, stride=stride)
            return F.pad(made, (left - before, before - left, top - before, before - top))

        near = F.interpolate(coarse, scale_factor=stride)
        near = F.pad(near, (left - before, before - left, top - before, before - top))
        kernel = (-0.5 * (guide - near).square().sum(1, keepdim=True)).exp()
        weighed = placed(torch.ones_like(x[:1, :1]), lengths)
        total, kernels, plain = total + kernel * placed(x, part), kernels + kernel * weighed, plain + weighed
    return total * plain / kernels.clamp_min(1e-12)


def _measured(run: Callable[..., Tensor], samples: Sequence[Sample]) -> tuple[Sums, Sums]:
    """Rows of the two metrics, an image a row."""
    task, rows = PAIR.task(), []
    for sample in samples:
        height, width = sample.labels.shape
        predicted = run(*kept.batch([sample], _CPU).inputs).max(1).indices
        rows.append(task.measure(predicted, task.prepare(sample.labels.long(), (height, width))))
    first, second = (np.stack([row[metric.name] for row in rows]) for metric in task.metrics)
    return first, second


def _values(sums: tuple[Sums, Sums]) -> list[float]:
    return [float(metric.value(rows.sum(0))) for rows, metric in zip(sums, PAIR.task().metrics, strict=True)]


def _row(name: str, arm: str, scale: float, steps: int, quality: Gain, near: Gain) -> Learned:
    return Learned(
        upsampler=name,
        arm=arm,
        scale=scale,
        steps=steps,
        images=quality.images,
        **figures(quality, near),
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        commit=commit(),
        versions=" ".join(f"{k}={v}" for k, v in installed(("torch",)).items()),
        processor=processor(),
        command="python -m benchmarks.real.learned",
    )


if __name__ == "__main__":
    main()
