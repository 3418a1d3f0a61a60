"""For each fine pixel of a bilinear enlargement, its coarse neighbours and their weights; sizes and factors."""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pac_ops.arguments import IntOrPair, pair
from pac_ops.geometry import Pair

Factor = float | Sequence[float]
FOOTPRINTS = (2, 4, 6, 8)
_LARGEST = 2**16  # pixels a side


class Enlargement(NamedTuple):
    """Where the coarse pixels lie, as `torch.nn.functional.interpolate` takes it, and how many count along each axis.

    With footprint 2 neighbours and weights are those of mode="bilinear": 2 x 2 under a tent that ends at the next
    pixel. With footprint n they are n x n, under a tent of n/2 times the width.

    A factor below 2 may leave an axis as long as it was: PyTorch copies along it on the CPU, whatever the factor; on
    other devices it copies only where both axes stay as long, and else spaces the pixels as the factor says.
    """

    scale_factor: Sequence[float] | None  # vertical, horizontal; None where the sizes alone say it
    align_corners: bool
    footprint: int
    # How often the coarse map was enlarged by 2 before, to 2n - 1 pixels of n: those, and one between each two.
    refined: int = 0
    band: Sequence[int] | None = None  # the fine rows at hand: the first, the one after the last, of how many
    held: Sequence[int] | None = None  # the coarse rows at hand, likewise; where `band` is not None

    def located(self, coarse: Pair, fine: Pair, device: torch.device) -> "Located":
        """Where fine pixels lie among coarse ones."""
        if self.band is None:
            rows, columns = (self._axis(axis, coarse, fine, device) for axis in (0, 1))
            return Located(rows, columns, self.footprint)
        first, after, height = self.band
        coarse = coarse if self.held is None else (self.held[2], coarse[1])
        rows, columns = (self._axis(axis, coarse, (height, fine[1]), device) for axis in (0, 1))
        rows = Axis(*(each[first:after] for each in rows))
        return Located(rows, columns, self.footprint, 0 if self.held is None else self.held[0])

    def neighbours(self, coarse: Pair, fine: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
        """See `Located.neighbours`."""
        return self.located(coarse, fine, device).neighbours()

    def weights(self, coarse: Pair, fine: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
        """See `Located.weights`."""
        return self.located(coarse, fine, device).weights()

    def tables(self, coarse: Pair, fine: Pair, device: torch.device, *, residual: bool) -> list[Tensor]:
        """Weights of rows, [k, Ho, n], and columns, [k, Wo, n], in float32, as compiled kernels take them.

        The tents and, of a residual, the plain weights and the tents over their sum, which are smooth.
        """
        located = self.located(coarse, fine, device)
        both = zip(located.weights(), located.plain_weights(), strict=True)
        return [torch.stack([t, p, t / t.sum(dim=1, keepdim=True)] if residual else [t]).float() for t, p in both]

    def steps(self, footprints: Sequence[int]) -> list["Enlargement"]:
        """A step for each footprint: all but the last put a pixel between each two, and that leads to the fine ones.

        So every pixel of a map is one of the next map's too, and with K = 1 the steps are the enlargement at once.
        """
        between = [Enlargement(None, True, footprint) for footprint in footprints[:-1]]
        last = Enlargement(self.scale_factor, self.align_corners, footprints[-1], len(between), self.band, self.held)
        return [*between, last]

    @property
    def options(self) -> tuple[Sequence[float] | None, bool, int, int]:
        """What an operator takes of it."""
        return self.scale_factor, self.align_corners, self.footprint, self.refined

    @property
    def hashable(self) -> "Enlargement":
        """The same without a list, as an operator's argument is one."""
        return self if self.scale_factor is None else self._replace(scale_factor=tuple(self.scale_factor))

    def place(self, axis: int, coarse: Pair, fine: Pair, device: torch.device, pixels: int) -> tuple[Tensor, int]:
        """Where so many fine pixels lie among coarse ones, [pixels, 1], also before the first; the last one."""
        exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        finer = 2**self.refined
        unrefined = self._unrefined(coarse)
        last = unrefined[axis] - 1
        pixel = torch.arange(pixels, dtype=exact, device=device).unsqueeze(1)
        if self.align_corners:
            place = pixel * last / max(fine[axis] - 1, 1)
        elif self.scale_factor is None:
            # No ratio of sizes: rounded, it would put a fine pixel beside the coarse one that it lies on, and ONNX
            # would take it in float32.
            place = (pixel + 0.5) * unrefined[axis] / fine[axis] - 0.5
        else:
            place = (pixel + 0.5) / self.scale_factor[axis] - 0.5
            if self.scale_factor[axis] < 2:
                copied = _stays(axis, unrefined, fine, device)
                place = place * (1 - copied) + pixel * copied
        return place.clamp(max=last) * finer, last * finer

    def _unrefined(self, coarse: Pair) -> Pair:
        finer = 2**self.refined
        return ((coarse[0] - 1) // finer + 1, (coarse[1] - 1) // finer + 1) if self.refined else coarse

    def _axis(self, axis: int, coarse: Pair, fine: Pair, device: torch.device) -> "Axis":
        place, last = self.place(axis, coarse, fine, device, fine[axis])
        # Before the first coarse pixel as between it and one outside, which weighs 0: neighbours step regularly.
        first = place.clamp(min=-0.5).floor()
        reach = self.footprint // 2
        near = first + torch.arange(1 - reach, 1 + reach, dtype=place.dtype, device=device)
        kept = near.clamp(0, last)
        # Whole numbers, so without a comparison, which some runtimes do not have.
        return Axis(place.clamp(min=0), near, kept, (1 - (near - kept).abs()).relu())


class Axis(NamedTuple):
    """Where the fine pixels of an axis lie among its coarse ones."""

    place: Tensor  # [n, 1]
    near: Tensor  # the coarse pixels next to them, [n, footprint], also before the first and after the last
    kept: Tensor  # the same, at the border one of them repeated
    inside: Tensor  # 1 where these are one, 0 outside the map

    def weights(self, footprint: int) -> Tensor:
        """Those of a tent so wide, [n, footprint]."""
        return ((self.place - self.near).abs() * (-2 / footprint) + 1).relu() * self.inside


class Located(NamedTuple):
    """Where fine pixels lie among coarse ones, down and across."""

    rows: Axis
    columns: Axis
    footprint: int
    above: int = 0  # the first coarse row at hand

    def neighbours(self) -> tuple[Tensor, Tensor]:
        """Rows, [Ho, n], and columns, [Wo, n], of fine pixels' neighbours; at the border one is repeated."""
        rows, columns = self.rows.kept.long(), self.columns.kept.long()
        return rows - self.above if self.above else rows, columns

    def weights(self) -> tuple[Tensor, Tensor]:
        """Weights of these rows, [Ho, n], and columns, [Wo, n], not normalised; 0 outside the map."""
        return self.rows.weights(self.footprint), self.columns.weights(self.footprint)

    def plain_weights(self) -> tuple[Tensor, Tensor]:
        """Weights of these rows and columns in mode="bilinear": 0 for all but the 2 in the middle."""
        return self.rows.weights(2), self.columns.weights(2)

    def indices(self) -> tuple[Tensor, Tensor]:
        """What `gathered` takes: columns, [n, W], and rows of a map with the n columns below each other, [n n, H]."""
        n, (rows, columns) = self.footprint, self.neighbours()
        below = (rows.t() * n).unsqueeze(1) + torch.arange(n, device=rows.device).unsqueeze(1)
        return columns.t(), below.flatten(0, 1)


def gathered(x: Tensor, indices: tuple[Tensor, Tensor]) -> Tensor:
    """A coarse map's pixels near each fine one: [B, C, h, w] -> [B, C, n n, H, W].

    All columns at once, and then all rows: exporters take as long for an operation on one as on all. Columns first:
    runtimes are slow at gathering along the last axis, and then it is short.
    """
    columns, rows = indices
    across = x.index_select(3, columns.reshape(-1)).unflatten(3, (columns.shape[0], columns.shape[1])).flatten(2, 3)
    near: Tensor = across.index_select(2, rows.reshape(-1)).unflatten(2, (rows.shape[0], rows.shape[1]))
    return near


def finite_log(weight: Tensor) -> Tensor:
    """The logarithm of weights in float64; of 0 so little that nothing is left of it."""
    least, never = 1e-18, 1e30  # less than any weight but 0
    return weight.clamp_min(least).log() + ((weight * (1 / least)).clamp_max(1) - 1) * never


def refined_size(coarse: Pair, times: int) -> Pair:
    """The height and width of a map with a pixel put between each two, so many times."""
    return ((coarse[0] - 1) * 2**times + 1, (coarse[1] - 1) * 2**times + 1)


def _stays(axis: int, coarse: Pair, fine: Pair, device: torch.device) -> int:
    """1 where an axis is copied because it stays as long, else 0; arithmetic, as an exporter leaves sizes open."""
    stays: list[Any] = [1 - torch.sym_min(fine[k] - coarse[k], 1) for k in (0, 1)]
    copied: int = stays[axis] if device.type == "cpu" else stays[0] * stays[1]
    return copied


def enlarged_size(coarse: Pair, size: IntOrPair | None, scale_factor: Factor | None) -> Pair:
    """The height and width that `F.interpolate` gives a map of this height and width; size or scale_factor is None.

    Raises:
        TypeError: where an argument is of the wrong type.
        ValueError: where a size or a factor is not positive.
    """
    if scale_factor is None:
        assert size is not None  # noqa: S101 (for the type checker)
        return pair("size", size, 1)
    rows, columns = (_enlarged(n, factor) for n, factor in zip(coarse, _pair_of_factors(scale_factor), strict=True))
    return rows, columns


def _enlarged(n: Any, factor: float) -> int:
    """The floor of n * factor; of a size that torch.export leaves open, by whole numbers.

    Of a floor it would guard that something remains, and ONNX would round the product to float32.
    """
    left_open = isinstance(n, torch.SymInt) and not torch.compiler.is_dynamo_compiling()
    ratio = ratio_of(factor) if left_open and isinstance(factor, float) else None
    enlarged: int = math.floor(n * factor) if ratio is None else n * ratio.numerator // ratio.denominator
    return enlarged


@functools.cache
def ratio_of(factor: float) -> Fraction | None:
    """The simplest ratio that enlarges sizes up to `_LARGEST` as the factor itself does."""
    for most in (2**10, 2**20, 2**30):
        a, b = Fraction(factor).limit_denominator(most).as_integer_ratio()
        if all(n * a // b == math.floor(n * factor) for n in range(_LARGEST)):
            return Fraction(a, b)
    return None


def footprints(given: int | Sequence[int], halvings: int = 0) -> tuple[int, ...]:
    """One footprint for each step, the coarsest first, of which so many follow halvings of the map.

    Raises:
        ValueError: where there are none, one is not of `FOOTPRINTS`, or no step is left behind the halvings.
    """
    each = (given,) if isinstance(given, int) else tuple(given)
    if not each or any(type(n) is not int or n not in FOOTPRINTS for n in each):
        choices = ", ".join(map(str, FOOTPRINTS))
        raise ValueError(f"footprint must be one of {choices}, or one of these for each step, got {given!r}")
    if type(halvings) is not int or not 0 <= halvings < len(each):
        raise ValueError(
            f"halvings must be a number from 0 to {len(each) - 1}, fewer than the footprints, got {halvings!r}; give "
            "a footprint for each step back from a halved map, and one or more for the enlargement"
        )
    return each


def factors_of(scale_factor: Factor | None) -> tuple[float, float] | None:
    """A vertical and a horizontal factor of at least 1, or None.

    Raises:
        TypeError: where it is neither a number nor a pair.
        ValueError: where one is smaller than 1.
    """
    both = None if scale_factor is None else _pair_of_factors(scale_factor)
    if both is not None and min(both) < 1:
        raise ValueError(f"scale_factor must be at least 1, got {scale_factor!r}")
    return both


def _pair_of_factors(scale_factor: Factor) -> tuple[float, float]:
    number = (int, float, torch.SymInt, torch.SymFloat)  # under torch.export, a ratio of dynamic sizes
    both = (scale_factor, scale_factor) if isinstance(scale_factor, number) else tuple(scale_factor)
    if len(both) != 2 or not all(isinstance(x, number) for x in both):
        raise TypeError(f"scale_factor must be a number or a pair of numbers, got {scale_factor!r}")
    exact: Any = torch.sym_float  # what it makes of a torch.SymInt or SymFloat passes for a float
    return exact(both[0]), exact(both[1])
