"""Losses and metrics, for each kind of truth."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassJaccardIndex

from hotswap.errors import HotswapError
from hotswap.measure.edges import near_edges
from pac_ops.binary import labels_of, two_classes
from recipes import config
from recipes.datasets import Tensors

EDGE_DISTANCES = (3, 5)  # pixels from an edge, within which boundary quality is measured


def task(settings: config.Task) -> "Task":
    """The task of a recipe."""
    match settings:
        case config.Segmentation():
            return Segmentation(settings.ignore)
        case config.Depth():
            return Depth(settings)
        case config.Flow():
            return Flow(settings.loss)


def target(truth: Tensors) -> Tensor:
    """The map of a truth, without its unit."""
    return truth if isinstance(truth, Tensor) else truth[0]


def predict(model: nn.Module, inputs: Tensors, size: torch.Size | None = None) -> Tensor:
    """Run a network and unwrap its map [B, C, H, W], resized bilinearly to `size`.

    Networks of torchvision give a mapping with `out`, those of transformers an object with `logits`.

    Raises:
        HotswapError: where it gives no map.
    """
    output: Any = model(inputs) if isinstance(inputs, Tensor) else model(*inputs)
    if isinstance(output, Mapping):
        output = next((output[key] for key in ("out", "logits", "predicted_depth") if key in output), output)
    if not isinstance(output, Tensor) or output.dim() != 4:
        given = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise HotswapError(f"the network must give a map [B, C, H, W], alone, as 'out' or as 'logits', got {given}")
    if size is not None and output.shape[-2:] != size:
        output = F.interpolate(output, size, mode="bilinear", align_corners=False)
    floats: Tensor = output.float()
    return floats


# --- segmentation -----------------------------------------------------------------------------------------


class Segmentation:
    """Class logits [B, classes, H, W] against labels [B, H, W]; the mean over pixels of their cross-entropy.

    A single channel is a binary logit, of label 1 against label 0.
    """

    best, higher_is_better = "miou", True

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore

    def total(self, prediction: Tensor, truth: Tensors) -> Tensor:
        """Summed over pixels that count.

        Raises:
            HotswapError: where a label is no class of the network.
        """
        truth = target(truth)
        prediction = two_classes(prediction) if prediction.shape[1] == 1 else prediction
        _check_labels(truth, prediction.shape[1], self.ignore)
        return F.cross_entropy(prediction, truth, ignore_index=self.ignore, reduction="sum")

    def count(self, truth: Tensors) -> int:
        """Pixels that are not ignored."""
        return int((target(truth) != self.ignore).sum())

    def measure(self) -> "SegmentationMeasure":
        """Intersection over union."""
        return SegmentationMeasure(self.ignore)


class SegmentationMeasure:
    """Mean IoU over all pixels of a data set, and over those near an edge of the truth."""

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore
        self.metrics: dict[str, MulticlassJaccardIndex] = {}

    def update(self, prediction: Tensor, truth: Tensors) -> None:
        """Logits [B, classes, H, W] and labels [B, H, W]."""
        classes, truth = max(2, prediction.shape[1]), target(truth)
        _check_labels(truth, classes, self.ignore)
        predicted = labels_of(prediction)
        truths = {"miou": truth} | {
            f"boundary_iou_{d}": torch.where(near_edges(truth, d), truth, self.ignore) for d in EDGE_DISTANCES
        }
        for name, labels in truths.items():
            if name not in self.metrics:
                self.metrics[name] = MulticlassJaccardIndex(classes, ignore_index=self.ignore).to(truth.device)
            self.metrics[name].update(predicted, labels)

    def compute(self) -> dict[str, float]:
        """`miou`, `boundary_iou_3`, `boundary_iou_5`, each 0..1."""
        return {name: float(metric.compute()) for name, metric in self.metrics.items()}


def _check_labels(truth: Tensor, classes: int, ignore: int) -> None:
    counted = truth[truth != ignore]
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < classes:
        raise HotswapError(
            f"labels must be from 0 to {classes - 1}, the network's classes, or {ignore} where nothing counts, "
            f"got {int(counted.min())} to {int(counted.max())}"
        )


# --- depth and flow ---------------------------------------------------------------------------------------


class Mean:
    """The mean of an error over a data set, of all processes together, in the truth's unit.

    Args:
        name: of the metric.
        errors: of predicted and true maps [B, C, H, W] and the truth's unit, [B] or [].
    """

    def __init__(self, name: str, errors: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        self.name, self.errors, self.metric = name, errors, MeanMetric()

    def update(self, prediction: Tensor, truth: Tensors) -> None:
        """Add a batch of maps."""
        expected = target(truth)
        _check_same_shape(prediction, expected)
        unit = torch.ones((), device=expected.device) if isinstance(truth, Tensor) else truth[1]
        self.metric.to(expected.device).update(self.errors(prediction, expected, unit))

    def compute(self) -> dict[str, float]:
        """The mean, by its name."""
        return {self.name: float(self.metric.compute())}


class _Regression:
    """The loss between maps of the same shape."""

    higher_is_better = False
    _LOSSES: ClassVar = {"l1": F.l1_loss, "l2": F.mse_loss}

    def __init__(self, loss: str) -> None:
        self.loss = loss

    def total(self, prediction: Tensor, truth: Tensors) -> Tensor:
        """Summed over numbers."""
        _check_same_shape(prediction, target(truth))
        total: Tensor = self._LOSSES[self.loss](prediction, target(truth), reduction="sum")
        return total

    def count(self, truth: Tensors) -> int:
        """Numbers."""
        return target(truth).numel()


class Depth(_Regression):
    """One number per pixel, [B, 1, H, W]. Pixels whose truth is nan or infinite do not count."""

    best = "rmse"

    def __init__(self, settings: config.Depth) -> None:
        super().__init__(settings.loss)
        self.border = settings.border

    def total(self, prediction: Tensor, truth: Tensors) -> Tensor:
        """Summed over pixels whose truth is known."""
        _check_same_shape(prediction, target(truth))
        known = target(truth).isfinite()
        return super().total(prediction[known], target(truth)[known])

    def count(self, truth: Tensors) -> int:
        """Pixels whose truth is known."""
        return int(target(truth).isfinite().sum())

    def measure(self) -> Mean:
        """Root mean square error of each image without its rim, where the truth is known; the mean over images."""
        return Mean(self.best, self._errors)

    def _errors(self, prediction: Tensor, truth: Tensor, unit: Tensor) -> Tensor:
        """One for each image of which some truth is known."""
        rim = slice(self.border, -self.border or None)
        squares = (prediction - truth)[..., rim, rim].double().square()
        if squares.numel() == 0:
            raise HotswapError(f"task.border must leave something of an image, got {self.border}")
        known = truth[..., rim, rim].isfinite()
        of_image = torch.where(known, squares, 0).sum((1, 2, 3)) / known.sum((1, 2, 3))
        return (of_image.sqrt() * unit)[known.flatten(1).any(1)]


class Flow(_Regression):
    """One vector per pixel, [B, 2, H, W]."""

    best = "epe"

    def total(self, prediction: Tensor, truth: Tensors) -> Tensor:
        """Summed over pixels, or over numbers where it is not the end-point error."""
        if self.loss != "epe":
            return super().total(prediction, truth)
        _check_same_shape(prediction, target(truth))
        # The slope of the square root is infinite at 0; a tiny summand keeps it finite.
        return ((prediction - target(truth)).square().sum(dim=1) + 1e-12).sqrt().sum()

    def count(self, truth: Tensors) -> int:
        """Pixels, or numbers where the loss is not the end-point error."""
        return super().count(truth) // (2 if self.loss == "epe" else 1)

    def measure(self) -> Mean:
        """The distance between predicted and true vector; the mean over the pixels of all images."""
        return Mean(self.best, self._errors)

    def _errors(self, prediction: Tensor, truth: Tensor, unit: Tensor) -> Tensor:
        """One for each pixel."""
        distance: Tensor = (prediction - truth).double().norm(dim=1)
        return distance * unit[..., None, None]


def _check_same_shape(prediction: Tensor, truth: Tensor) -> None:
    if prediction.shape != truth.shape:
        raise HotswapError(
            f"the network must give maps of the truth's shape {list(truth.shape)}, got {list(prediction.shape)}"
        )


Task = Segmentation | Depth | Flow
Measure = SegmentationMeasure | Mean
