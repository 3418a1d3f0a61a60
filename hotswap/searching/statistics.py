"""Paired differences over images, with confidence intervals."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Sums = npt.NDArray[np.float64]  # [images, numbers], or [..., numbers] once summed over images
Value = Callable[[Sums], npt.NDArray[np.float64]]  # from sums over images to the metric, [..., numbers] -> [...]
_RESAMPLES = 2000
_NORMAL = 1.959963984540054  # of a standard normal, 95 % lie within so much of 0


@dataclass(frozen=True)
class Gain:
    """A metric of a swapped network beside the plain one's, on the same images."""

    images: int
    plain: float
    swapped: float
    better: float  # the difference, above 0 where the swap is better
    margin: float  # half the width of the 95 % interval; nan for fewer than two images

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0, on the better side."""
        return self.better > self.margin

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {"plain": self.plain, "swapped": self.swapped, "better": self.better, "margin": self.margin}
        return {"images": self.images} | {k: None if math.isnan(v) else v for k, v in values.items()}


def gain(plain: Sums, swapped: Sums, value: Value, *, higher_is_better: bool) -> Gain:
    """Compare two networks on the same images.

    The interval is Student's: the standard error is that of a paired bootstrap, which draws images, each with both
    networks' numbers. For a mean over images it is the usual t interval.

    Args:
        plain: what the metric is computed from, a row an image.
        swapped: the same of the swapped network.
        value: the metric, of rows that were summed.
        higher_is_better: whether a larger value is the better one.
    """
    images = len(plain)
    sign = 1.0 if higher_is_better else -1.0
    before, after = (float(value(rows.sum(axis=0))) for rows in (plain, swapped))
    margin = math.nan
    if images > 1:
        counts = np.random.default_rng(0).multinomial(images, np.full(images, 1 / images), _RESAMPLES).astype(float)
        with np.errstate(invalid="ignore"):
            differences = value(counts @ swapped) - value(counts @ plain)
        error = float(np.nanstd(differences)) * math.sqrt(images / (images - 1))
        margin = student(images - 1) * error
    return Gain(images, before, after, sign * (after - before), margin)


def student(degrees: int) -> float:
    """Student's t: 95 % lie within so much of 0, to 1 % from three degrees of freedom on (Cornish and Fisher)."""
    z, n = _NORMAL, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
