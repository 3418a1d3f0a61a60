"""Short fine-tuning and evaluation in one call each, with the training loop of recipes."""

from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import Dataset

from hotswap.network.dry_run import device_of
from recipes import config
from recipes.building import example
from recipes.datasets import length
from recipes.tasks import Segmentation
from recipes.training import Trainer, measure, progress, start

Pairs = Dataset[tuple[Tensor, Tensor]]
_IGNORE = 255  # the label of pixels that do not count


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
        dataset: pairs of image [3, H, W] and labels [H, W], int64; label 255 counts nowhere.
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
    for name, number in (("steps", steps), ("batch_size", batch_size)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    settings = config.Training(steps=steps, batch_size=batch_size, optimiser=config.Optimiser(lr=lr), seed=seed)
    device = device_of(model)
    losses: list[float] = []
    try:
        trainer = Trainer(model, dataset, Segmentation(_IGNORE), settings, start(), example(dataset, seed))
        with progress(label, 0, steps, console) as bar:
            for loss in trainer.run(steps):
                losses.append(loss)
                bar(loss)
        trainer.finish()
    finally:
        model.to(device)
    return losses


def evaluate(model: nn.Module, dataset: Pairs, *, batch_size: int = 8) -> float:
    """The mean IoU over classes, 0..1, over all pixels of a data set.

    Runs on the device and leaves the modes the network has.

    Args:
        model: image [B, 3, H, W] -> class logits [B, classes, H, W].
        dataset: pairs of image [3, H, W] and labels [H, W], int64, at least one; label 255 counts nowhere.
        batch_size: images at a time; no effect on the result but rounding.

    Raises:
        ValueError: where the data set is empty.
    """
    if length(dataset) < 1:
        raise ValueError("dataset must hold at least one image, got none")
    return measure(model, dataset, Segmentation(_IGNORE).measure(), batch_size=batch_size)["miou"]
