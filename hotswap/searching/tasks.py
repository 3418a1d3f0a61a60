"""Metrics of a map beside its truth, as sums over images."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hotswap.choices import EDGES, EPE, IOU, MIOU, RMSE
from hotswap.errors import HotswapError
from hotswap.measure.edges import near_edges
from hotswap.network.names import AUTO
from hotswap.network.predictions import Layout
from hotswap.searching.statistics import Sums, Value

EDGE_DISTANCE = 3  # pixels from the true contour, within which quality near edges is measured
Measured = dict[str, Sums]  # by metric: one image's row
Function = Callable[[Tensor, Any], float]  # a user's metric of one map, [C, H, W], and its label


@dataclass(frozen=True)
class Metric:
    """A metric, computed from rows of numbers that were summed over images."""

    name: str
    title: str  # for people
    value: Value
    higher_is_better: bool = True
    unit: float = 1.0  # what it is multiplied by for people: 100 for percent

    def text(self, value: float) -> str:
        """A value for people."""
        return f"{value * self.unit:.{'4g' if self.unit == 1 else '1f'}}"

    def signed(self, value: float) -> str:
        """A difference for people."""
        return f"{value * self.unit:+.3g}" if self.unit == 1 else f"{value * self.unit:+.1f}"


class Task(Protocol):
    """The metrics of a kind of truth; the first is the one to choose by."""

    layout: Layout
    metrics: tuple[Metric, ...]

    def prepare(self, truth: Any, size: tuple[int, int]) -> Any:
        """A truth at the map's size, with what is computed of it once for all candidates."""
        ...

    def measure(self, output: Any, prepared: Any) -> Measured:
        """One image's row for each metric."""
        ...

    def shown(self, output: Any) -> Tensor:
        """What is compared: labels [H, W], or numbers [C, H, W]."""
        ...

    def truth(self, prepared: Any) -> Tensor | None:
        """The same of a prepared truth; labels that do not count are -1, numbers nan. None where it is no map."""
        ...


def mean_of_images(sums: Sums) -> Sums:
    """The mean of rows (value, 1)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Sums = sums[..., 0] / sums[..., 1]
    return mean


def mean_iou(sums: Sums) -> Sums:
    """The mean over classes that occur in the truth, of rows (hits, predicted, true), each for all classes."""
    hits, predicted, true = np.split(sums, 3, axis=-1)
    occurs = true > 0
    iou = np.where(occurs, hits / np.maximum(predicted + true - hits, 1), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Sums = iou.sum(axis=-1) / occurs.sum(axis=-1)
    return mean


class Classes:
    """Labels of several classes: IoU of all pixels of all images together, mean over the classes that occur."""

    def __init__(self, layout: Layout, ignore: int, by: str = MIOU) -> None:
        self.layout, self.ignore = layout, ignore
        self.classes = 256 if layout.labels else max(2, layout.channels)
        both = {
            MIOU: Metric(MIOU, "mIoU", mean_iou, unit=100),
            EDGES: Metric(EDGES, f"mIoU within {EDGE_DISTANCE} px of edges", mean_iou, unit=100),
        }
        self.metrics = (both.pop(by), *both.values())

    def prepare(self, truth: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Labels, and where edges are near."""
        labels = resized_labels(truth, size)
        counted = labels[labels != self.ignore]
        if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < self.classes:
            raise HotswapError(
                f"labels must be from 0 to {self.classes - 1}, the network's classes, or {self.ignore} where nothing "
                f"counts (ignore), got {int(counted.min())} to {int(counted.max())}"
            )
        return labels, near_edges(labels[None], EDGE_DISTANCE)[0]

    def measure(self, output: Any, prepared: tuple[Tensor, Tensor]) -> Measured:
        """Hits, predicted and true pixels of each class."""
        labels, near = prepared
        predicted = self.shown(output)
        counts = labels != self.ignore
        return {MIOU: self._row(predicted, labels, counts), EDGES: self._row(predicted, labels, counts & near)}

    def shown(self, output: Any) -> Tensor:
        """Labels."""
        return self.layout.labels_of(output).cpu()

    def truth(self, prepared: tuple[Tensor, Tensor]) -> Tensor:
        """Labels, -1 where nothing counts."""
        labels, _ = prepared
        return labels.masked_fill(labels == self.ignore, -1)

    def _row(self, predicted: Tensor, labels: Tensor, counts: Tensor) -> Sums:
        ours, true = predicted[counts], labels[counts]
        parts = (true[ours == true], ours, true)
        counted = [np.bincount(x.numpy(), minlength=self.classes)[: self.classes] for x in parts]
        return np.concatenate(counted).astype(float)


class OneClass:
    """One class against the rest: IoU of each image, mean over images."""

    def __init__(self, layout: Layout, ignore: int, wanted: int | None, masks: bool, by: str = IOU) -> None:
        self.layout, self.ignore = layout, ignore
        self.predicted = 1 if wanted is None or (layout.channels == 1 and not layout.labels) else wanted
        self.true = 1 if masks or wanted is None else wanted
        self.binary = wanted is None and not masks
        both = {
            IOU: Metric(IOU, "IoU", mean_of_images, unit=100),
            EDGES: Metric(EDGES, f"IoU within {EDGE_DISTANCE} px of edges", mean_of_images, unit=100),
        }
        self.metrics = (both.pop(by), *both.values())

    def prepare(self, truth: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The class, what counts, and where edges are near."""
        labels = resized_labels(truth, size)
        counts = labels != self.ignore
        if self.binary and bool((labels[counts] > 1).any()):
            raise HotswapError(
                f"labels must be 0, 1, or {self.ignore} where nothing counts (ignore), as the network tells two "
                f"classes apart, got {int(labels[counts].max())}; say which is meant by class_index (on the command "
                "line: --class)"
            )
        here = torch.where(counts, (labels == self.true).long(), -1)
        near = counts & near_edges(here[None], EDGE_DISTANCE)[0]
        return here == 1, counts, near & (near & (here == 1)).any()

    def measure(self, output: Any, prepared: tuple[Tensor, Tensor, Tensor]) -> Measured:
        """IoU of the whole image, and near edges where it has some."""
        true, counts, near = prepared
        ours = self.shown(output) == 1
        return {IOU: _iou(ours, true, counts), EDGES: _iou(ours, true, near)}

    def shown(self, output: Any) -> Tensor:
        """1 where the class is."""
        return (self.layout.labels_of(output).cpu() == self.predicted).long()

    def truth(self, prepared: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """1 where the class is, -1 where nothing counts."""
        true, counts, _ = prepared
        return true.long().masked_fill(~counts, -1)


def _iou(ours: Tensor, true: Tensor, counts: Tensor) -> Sums:
    """A row (IoU, 1); IoU is 1 where neither has a pixel, and (0, 0) the row of an image where nothing counts."""
    if not counts.any():
        return np.zeros(2)
    union = int(((ours | true) & counts).sum())
    return np.array([int((ours & true & counts).sum()) / union if union else 1.0, 1.0])


class Numbers:
    """Maps of numbers, such as depth; root mean square error of each image, mean over images. Truth may be nan."""

    def __init__(self, layout: Layout, by: str = RMSE) -> None:
        self.layout = layout
        title = {RMSE: "RMSE", EPE: "end-point error"}[by]
        self.metrics: tuple[Metric, ...] = (Metric(by, title, mean_of_images, higher_is_better=False),)

    def prepare(self, truth: Tensor, size: tuple[int, int]) -> Tensor:
        """[C, H, W] at the map's size, by the nearest pixel, which mixes nothing across edges; flow in its pixels."""
        truth = truth if truth.dim() == 3 else truth[None]
        if len(truth) != self.layout.channels:
            raise HotswapError(
                f"labels must have the {self.layout.channels} channels of the network's map, got {len(truth)}"
            )
        height, width = truth.shape[1:]
        if (height, width) == size:
            return truth.double()
        resized = F.interpolate(truth[None].double(), size, mode="nearest-exact")[0]
        factors = torch.tensor([size[1] / width, size[0] / height], dtype=torch.float64)
        return resized * factors[:, None, None] if self.metrics[0].name == EPE else resized

    def measure(self, output: Any, prepared: Tensor) -> Measured:
        """The error of one image; end-point errors of all pixels count alike."""
        difference = self.shown(output) - prepared
        known = difference.isfinite().all(dim=0)
        squares = difference.square().sum(dim=0)[known]
        if not squares.numel():
            return {self.metrics[0].name: np.zeros(2)}
        if self.metrics[0].name == EPE:
            return {EPE: np.array([float(squares.sqrt().sum()), float(squares.numel())])}
        return {RMSE: np.array([float((squares / len(difference)).mean().sqrt()), 1.0])}

    def shown(self, output: Any) -> Tensor:
        """Numbers."""
        return self.layout.map_of(output).cpu().double()

    def truth(self, prepared: Tensor) -> Tensor:
        """Numbers."""
        return prepared


class Own:
    """A user's function of one map and its label; the mean over images."""

    def __init__(self, layout: Layout, function: Function, *, higher_is_better: bool) -> None:
        self.layout, self.function = layout, function
        name = getattr(function, "__name__", type(function).__name__)
        self.metrics: tuple[Metric, ...] = (Metric(name, name, mean_of_images, higher_is_better),)

    def prepare(self, truth: Any, size: tuple[int, int]) -> Any:
        """The label as it was given."""
        return truth

    def measure(self, output: Any, prepared: Any) -> Measured:
        """A row (value, 1); a value that is nan does not count."""
        value = float(self.function(self.layout.map_of(output), prepared))
        return {self.metrics[0].name: np.zeros(2) if math.isnan(value) else np.array([value, 1.0])}

    def shown(self, output: Any) -> Tensor:
        """Labels where there are several channels, else numbers."""
        several = self.layout.labels or self.layout.channels > 1
        return self.layout.labels_of(output).cpu() if several else self.layout.map_of(output).cpu().double()

    def truth(self, prepared: Any) -> None:
        """Not known: the label may be anything."""


def resized_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels [H, W] at another size, by the nearest pixel."""
    if tuple(labels.shape) == size:
        return labels.long()
    return F.interpolate(labels[None, None].double(), size, mode="nearest-exact")[0, 0].long()


def task_for(
    layout: Layout,
    metric: str | Function,
    *,
    masks: bool,
    numbers: bool,
    class_index: int | None,
    ignore: int,
    higher_is_better: bool,
) -> Task:
    """The task that fits a network's map and the labels.

    Args:
        layout: the network's map.
        metric: one of `METRICS`, or a function.
        masks: whether all labels are of one class.
        numbers: whether labels are depth or flow.
        class_index: the class to look at.
        ignore: the label of pixels that do not count.
        higher_is_better: of a function.

    Raises:
        HotswapError: where they do not fit.
    """
    if callable(metric):
        return Own(layout, metric, higher_is_better=higher_is_better)
    if numbers or metric in (RMSE, EPE):
        if layout.labels or metric not in (AUTO, RMSE, EPE):
            given = "labels" if layout.labels else "numbers"
            raise HotswapError(
                f"metric must be {RMSE} or {EPE} where labels are numbers, and fit the network's map of {given}, "
                f"got {metric!r}"
            )
        return Numbers(layout, (EPE if layout.channels == 2 else RMSE) if metric == AUTO else metric)
    several = layout.labels or layout.channels > 2
    if class_index is not None and not 0 <= class_index < (256 if layout.labels else max(2, layout.channels)):
        raise HotswapError(f"class_index must be one of the network's {layout.channels} classes, got {class_index}")
    if masks and several and class_index is None:
        raise HotswapError(
            f"labels are masks of one class, and the network has {layout.channels or 'several'}: say which one they "
            "are of by class_index (on the command line: --class)"
        )
    known = class_index is not None or masks
    if metric == IOU and several and not known:
        raise HotswapError(f"metric {IOU!r} is of one class: say which by class_index, or take {MIOU!r}")
    if metric == MIOU and several and known:
        raise HotswapError(f"metric {MIOU!r} is of several classes, and one is looked at here: take {IOU!r}")
    one = metric != MIOU and (known or not several)
    if one:
        return OneClass(layout, ignore, class_index, masks, EDGES if metric == EDGES else IOU)
    return Classes(layout, ignore, EDGES if metric == EDGES else MIOU)
