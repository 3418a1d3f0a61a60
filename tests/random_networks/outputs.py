"""What networks give, compared."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import Tensor


def leaves(output: Any) -> list[Tensor]:
    """The tensors in what a network gives, in order."""
    if isinstance(output, Tensor):
        return [output]
    if dataclasses.is_dataclass(output):
        output = vars(output)
    items = output.values() if isinstance(output, dict) else output if isinstance(output, (list, tuple)) else ()
    return [leaf for item in items for leaf in leaves(item)]


def gap(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest of that tensor; infinite where one has NaN and the other not."""
    worst = 0.0
    for x, y in zip(found, expected, strict=True):
        x, y = x.detach().double(), y.detach().double()
        x, y = x.masked_fill(x.isnan() & y.isnan(), 0), y.masked_fill(x.isnan() & y.isnan(), 0)
        same = x == y  # infinities, too
        gaps = (x - y).abs().masked_fill(same, 0)
        if gaps.numel():
            largest = float((gaps / y.abs().max().clamp_min(1e-3)).nan_to_num(nan=float("inf")).max())
            worst = max(worst, largest)
    return worst
