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
    """The largest difference, relative to the largest of that tensor; infinite where one has NaN and the other not.

    A single number, as the mean of what a norm made about 0, is held to the largest of all.
    """
    finite = [y.detach().double().nan_to_num(0, 0, 0).abs().max() for y in expected if y.numel()]
    worst, largest_of_all = 0.0, max(map(float, finite), default=0.0)
    for x, y in zip(found, expected, strict=True):
        x, y = x.detach().double(), y.detach().double()
        x, y = x.masked_fill(x.isnan() & y.isnan(), 0), y.masked_fill(x.isnan() & y.isnan(), 0)
        same = x == y  # infinities, too
        gaps = (x - y).abs().masked_fill(same, 0)
        if gaps.numel():
            scale = max(float(y.abs().max()) if y.numel() > 1 else largest_of_all, 1e-3)
            worst = max(worst, float((gaps / scale).nan_to_num(nan=float("inf")).max()))
    return worst
