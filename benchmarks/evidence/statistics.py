"""Differences between two arms, over seeds that they share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and half the width of its 95 % confidence interval (Student's t)."""

    mean: float
    margin: float  # nan for fewer than two pairs
    pairs: int
    positive: int  # pairs whose difference is above 0
    negative: int  # and below

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.margin


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """`ours` minus `theirs`, pair by pair.

    Raises:
        ValueError: where they are not of one length, or empty.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    count = len(differences)
    if count == 0:
        raise ValueError("there must be at least one pair, got none")
    mean = sum(differences) / count
    margin = math.nan
    if count > 1:
        spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / (count - 1))
        margin = float(stats.t.ppf(0.975, count - 1)) * spread / math.sqrt(count)
    return Difference(mean, margin, count, sum(d > 0 for d in differences), sum(d < 0 for d in differences))
