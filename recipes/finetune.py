"""A short fine-tuning loop and its score: small, seeded, and the same for every network it is given."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchmetrics.classification import MulticlassJaccardIndex

from hotswap.observe import mode

Pairs = Dataset[tuple[Tensor, Tensor]]


def finetune(
    model: nn.Module,
    dataset: Pairs,
    *,
    steps: int,
    batch_size: int = 4,
    lr: float = 1e-4,
    seed: int = 0,
    label: str = "fine-tuning",
    console: Console | None = None,
) -> list[float]:
    """Train a segmentation network in place, with AdamW at a constant rate and the pixels' mean cross-entropy.

    Parameters that do not require a gradient stay as they are. Accelerate picks the device; afterwards the
    network is back on its own, every module in the mode it was in.

    Args:
        model: image [B, 3, H, W] -> class logits [B, classes, H, W].
        dataset: pairs of image [3, H, W] and labels [H, W], int64.
        steps: number of batches to train on, at least 1.
        batch_size: images a step; the data set must hold that many.
        lr: learning rate.
        seed: fixes the order of the data, whatever the network: two networks trained with the same seed see
            the same images in the same order. Also fixes dropout and the like.
        label: shown beside the progress bar.
        console: where the progress bar is drawn.

    Returns:
        The loss of every step.

    Raises:
        ValueError: where steps or batch_size is out of range, or nothing in the network can be trained.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(
            "model must have a parameter that requires a gradient, got none; unfreeze what is to be tuned"
        )
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if not 1 <= batch_size <= _length(dataset):
        raise ValueError(
            f"batch_size must be from 1 to {_length(dataset)}, the size of the data set, got {batch_size}"
        )
    order = data_order(_length(dataset), steps * batch_size, seed)
    device = parameters[0].device
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )
    losses: list[float] = []
    accelerator = Accelerator()
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(Subset(dataset, order), batch_size)
    try:
        with mode(model, training=True), torch.random.fork_rng(), progress:
            torch.manual_seed(seed)
            task = progress.add_task(label, total=steps, loss=float("nan"))
            network, optimizer, batches = accelerator.prepare(model, torch.optim.AdamW(parameters, lr=lr), loader)
            for image, labels in batches:
                loss = F.cross_entropy(network(image), labels)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                losses.append(loss.item())
                progress.update(task, advance=1, loss=losses[-1])
    finally:
        model.to(device)
    return losses


def data_order(length: int, count: int, seed: int) -> list[int]:
    """Indices of `count` draws from `length` items: one shuffled pass after another, fixed by the seed."""
    generator = torch.Generator().manual_seed(seed)
    passes = -(-count // length)
    order: list[int] = torch.cat([torch.randperm(length, generator=generator) for _ in range(passes)]).tolist()
    return order[:count]


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Pairs, *, batch_size: int = 8) -> float:
    """The mean over classes of intersection over union, 0..1, of all pixels of a data set taken together.

    Runs on the device and leaves the modes the network has.

    Args:
        model: image [B, 3, H, W] -> class logits [B, classes, H, W].
        dataset: pairs of image [3, H, W] and labels [H, W], int64, at least one.
        batch_size: images at a time; no effect on the result but rounding.

    Raises:
        ValueError: where the data set is empty.
    """
    if _length(dataset) < 1:
        raise ValueError("dataset must hold at least one image, got none")
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(dataset, batch_size)
    metric: MulticlassJaccardIndex | None = None
    with mode(model, training=False):
        for image, labels in loader:
            logits = model(image.to(device))
            if metric is None:
                metric = MulticlassJaccardIndex(num_classes=logits.shape[1]).to(device)
            metric.update(logits.argmax(dim=1), labels.to(device))
    assert metric is not None  # noqa: S101 (the data set is not empty)
    return float(metric.compute())


def _length(dataset: Pairs) -> int:
    return len(dataset)  # type: ignore[arg-type]  # torch's map-style data sets have one, but do not say so
