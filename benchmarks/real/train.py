"""Trains a network on CamVid: `python -m benchmarks.real.train NAME --seed 1 --out FOLDER`."""

import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.real.camvid import CLASSES, VOID, Frame, crops, frames, normalised
from benchmarks.real.front import Front, behind, front_of
from benchmarks.real.networks import NETWORKS

BATCH, RATE, DECAY = 6, 2e-3, 1e-2
RATES = {"encoder": 4e-4, "conv5_1": 1e-4, "conv5_2": 1e-4, "conv5_3": 1e-4, "fc6": 4e-4, "fc7": 4e-4}  # slower parts


@click.command()
@click.argument("name", type=click.Choice(sorted(NETWORKS)))
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--steps", type=int, default=1500, show_default=True)
@click.option("--check-every", type=int, default=250, show_default=True, help="Steps; the network is then saved.")
@click.option("--start", type=click.Path(exists=True, path_type=Path), help="Of an earlier run.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder for NAME_SEED.safetensors.")
def main(name: str, seed: int, steps: int, check_every: int, start: Path | None, out: Path) -> None:
    """Train a network from its ImageNet weights, or go on from an earlier run, and save it."""
    torch.manual_seed(seed)
    model = NETWORKS[name]().to(memory_format=torch.channels_last)
    if start is not None:
        model.load_state_dict(load_file(start))
    parts = {key: [x for x in part.parameters() if x.requires_grad] for key, part in model.named_children()}
    groups = [{"params": part, "lr": RATES.get(key, RATE)} for key, part in parts.items() if part]
    optimiser = torch.optim.AdamW(groups, weight_decay=DECAY)
    most = [RATES.get(key, RATE) for key, part in parts.items() if part]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, most, total_steps=steps)
    front = front_of(name)
    check = frames("val")[:50:5]
    began = time.time()
    out.mkdir(parents=True, exist_ok=True)
    model.train()
    for step, (images, labels) in enumerate(batches(front, steps, seed), 1):
        with behind(front, model):
            scores = model(images.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(scores, labels, ignore_index=VOID)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % check_every == 0 or step == steps:
            print(f"{name} {seed}: step {step}, loss {loss:.3f}, mIoU {miou(model, check):.4f}, "
                  f"{time.time() - began:.0f} s", flush=True)  # fmt: skip
            state = {key: value.contiguous() for key, value in model.state_dict().items()}
            save_file(state, out / f"{name}_{seed}.safetensors")


def batches(front: Front | None, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """What each step sees: crops, or whole frames of networks whose front is kept."""
    train = frames("train")
    return crops(train, steps, BATCH, seed) if front is None else front.frames(train, steps, seed)


def trained(name: str, seed: int, folder: Path) -> nn.Module:
    """A network as `main` left it, in evaluation."""
    model = NETWORKS[name]()
    model.load_state_dict(load_file(folder / f"{name}_{seed}.safetensors"))
    return model.eval()


@torch.no_grad()
def miou(model: nn.Module, check: list[Frame]) -> float:
    """The mean IoU over the classes on some frames."""
    training, counts = model.training, torch.zeros(len(CLASSES), len(CLASSES))
    model.eval()
    for frame in check:
        predicted = model(normalised(frame.image)[None]).argmax(1)[0]
        drawn = frame.labels != VOID
        index = frame.labels[drawn].long() * len(CLASSES) + predicted[drawn]
        counts += index.bincount(minlength=len(CLASSES) ** 2).view_as(counts)
    model.train(training)
    hits = counts.diag()
    return float((hits / (counts.sum(0) + counts.sum(1) - hits).clamp_min(1)).mean())


if __name__ == "__main__":
    main()
