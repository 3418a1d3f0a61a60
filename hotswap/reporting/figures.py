"""Figures about each target: the distribution of K, a map of 1 - K, and K in full at a few pixels."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hotswap.colours import Numbers
from hotswap.measure.compare import Swapped, visited
from hotswap.measure.verify import Comparison
from hotswap.reporting.encoding import reduced
from hotswap.reporting.outputs import Compared, compare
from hotswap.reporting.samples import Sample

Place = tuple[float, float]  # of a pixel: distances from the top and the left, as shares of height and width

BARS = 40  # of a histogram as drawn
_FINE = 25 * BARS  # bins in which K is counted
_GRID = 32  # cells along each side, at most, from which the shown pixels are chosen
_STEERED, _APART = 3, 6  # number of pixels where neighbours count least, and cells between them


@dataclass(frozen=True)
class Windows:
    """K of one target on one image."""

    change: Numbers  # the mean of 1 - K over each pixel's neighbours, on at most as many pixels as are drawn
    size: tuple[int, int]  # height and width of the target's map
    deviation: float  # the mean of 1 - K over all
    at: tuple[npt.NDArray[np.float64], ...]  # K at each of the image's places, [kh, kw]; NaN outside the image


class Histogram:
    """A histogram of K over all neighbours inside the image."""

    def __init__(self) -> None:
        self._counts = torch.zeros(_FINE, dtype=torch.float64)
        self.below = self.above = self.not_finite = 0  # counts of values under 0, over 1, or not finite

    def add(self, kernel: Tensor) -> None:
        """Add values to the histogram."""
        finite = kernel[kernel.isfinite()].cpu()
        self.not_finite += kernel.numel() - finite.numel()
        self.below += int((finite < 0).sum())
        self.above += int((finite > 1).sum())
        self._counts += torch.histc(finite.double(), _FINE, 0, 1)

    @property
    def bars(self) -> tuple[float, ...]:
        """The share of values in each of `BARS` steps from 0 to 1."""
        total = self._counts.sum() + self.below + self.above
        return tuple((self._counts.view(BARS, -1).sum(dim=1) / total.clamp_min(1)).tolist())

    def quantile(self, share: float) -> float | None:
        """The K that this share of those in 0..1 does not exceed, to a thousandth; None where there are none."""
        total = float(self._counts.sum())
        if not total:
            return None
        place = int(torch.searchsorted(self._counts.cumsum(0), share * total))
        return (min(place, _FINE - 1) + 1) / _FINE


@dataclass(frozen=True)
class Shown:
    """The results for one image."""

    sample: Sample
    places: tuple[Place, ...]  # the shown pixels: those where neighbours count least, then one where they count most
    windows: Mapping[str, Windows]  # by target; of its first call
    compared: Compared | None  # its outputs


@dataclass
class Figures:
    """The results for all images."""

    comparison: Comparison
    histograms: dict[str, Histogram] = field(default_factory=dict)  # by target
    shown: list[Shown] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)  # of each target, for one image


def collect(model: nn.Module, samples: Iterable[Sample], outputs: str) -> Figures:
    """Run a swapped network and its plain self on each image; outputs are drawn at once, and not kept."""
    figures = Figures(Comparison(model))
    figures.histograms = {path: Histogram() for path in figures.comparison.layers}
    for sample in samples:
        look = _Look(figures.histograms)
        with visited(model, look.visit):
            plain, swapped = figures.comparison.add(sample.arguments)
        figures.shown.append(Shown(sample, tuple(look.places), look.windows, compare(plain, swapped, outputs)))
        figures.calls = look.calls
    return figures


class _Look:
    """Collects the figures of one image while the network runs, so that no K is stored."""

    def __init__(self, histograms: Mapping[str, Histogram]) -> None:
        self.histograms = histograms
        self.places: list[Place] = []
        self.windows: dict[str, Windows] = {}
        self.calls: dict[str, int] = {}

    def visit(self, path: str, layer: Swapped, distance: Tensor, counts: Tensor) -> None:
        deviation = layer.deviation(distance)[:, 0]  # [B, kh, kw, H, W]
        self.histograms[path].add(1 - deviation[:, counts])
        self.calls[path] = self.calls.get(path, 0) + 1
        if path in self.windows:
            return
        first = deviation[0]
        neighbours = counts.sum((0, 1))
        change = torch.where(counts, first, 0).sum((0, 1)) / neighbours.clamp_min(1)
        if not self.places:
            self.places = list(_places(torch.where(neighbours == neighbours.max(), change, torch.nan)))
        height, width = change.shape
        kernel = torch.where(counts | _centre(layer, counts), 1 - first, torch.nan)
        at = [kernel[:, :, int(y * height), int(x * width)].cpu().numpy() for y, x in self.places]
        mean = first[counts].mean().item() if bool(counts.any()) else 0.0
        picture = reduced(change.float().cpu().numpy())
        self.windows[path] = Windows(picture, (height, width), mean, tuple(at))


def _centre(layer: Swapped, counts: Tensor) -> Tensor:
    """The centre tap of a window, where K = 1. Windows of enlargements have none."""
    kh, kw = counts.shape[:2]
    centre = torch.zeros_like(counts)
    if hasattr(layer, "sliding"):
        centre[kh // 2, kw // 2] = True
    return centre


def _places(change: Tensor) -> Iterator[Place]:
    """Choose pixels to show: some where neighbours count least, apart from each other, and one where they count most.

    Args:
        change: [H, W], the mean of 1 - K over each pixel's neighbours; NaN where some lie outside the image.
    """
    height, width = change.shape
    rows, columns = min(height, _GRID), min(width, _GRID)
    cells = F.adaptive_max_pool2d(change[None, None].nan_to_num(-1), (rows, columns))[0, 0]
    flat = F.adaptive_avg_pool2d(change[None, None], (rows, columns))[0, 0].nan_to_num(torch.inf)
    if min(rows, columns) > 2 * _STEERED:  # not at the rim, where marks would be cut off
        rim = torch.ones_like(cells, dtype=torch.bool)
        rim[1:-1, 1:-1] = False
        cells, flat = cells.masked_fill(rim, -1), flat.masked_fill(rim, torch.inf)
    for _ in range(_STEERED):
        row, column = divmod(int(cells.argmax()), columns)
        if not cells[row, column] > 0:
            break
        yield _largest_in(change, row, column, rows, columns)
        cells[max(0, row - _APART) : row + _APART + 1, max(0, column - _APART) : column + _APART + 1] = -1
    row, column = divmod(int(flat.argmin()), columns)
    yield (row + 0.5) / rows, (column + 0.5) / columns


def _largest_in(change: Tensor, row: int, column: int, rows: int, columns: int) -> Place:
    height, width = change.shape
    top, left = row * height // rows, column * width // columns
    cell = change[top : -(-(row + 1) * height // rows), left : -(-(column + 1) * width // columns)].nan_to_num(-1)
    y, x = divmod(int(cell.argmax()), cell.shape[1])
    return (top + y + 0.5) / height, (left + x + 0.5) / width
