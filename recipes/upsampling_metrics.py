"""Errors of enlarged maps, as the literature counts them."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

BORDER = 6  # pixels cut off on every side


class DepthRMSE(Metric):
    """The mean over images of the root mean squared error, in the unit that `update` is given; centimetres for NYU.

    Args:
        border: rows and columns on every side that do not count.

    Raises:
        ValueError: where, updated, the border leaves nothing of a map.
    """

    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, border: int = BORDER, **options: Any) -> None:
        super().__init__(**options)
        self.border = border
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor, unit: Tensor) -> None:
        """Count a batch: output and target [B, C, H, W], unit [B]."""
        inside = slice(self.border, -self.border or None)
        error = (output - target)[:, :, inside, inside].double()
        if not error.numel():
            raise ValueError(
                f"border must leave some of the map's {list(target.shape[2:])} pixels, got {self.border}"
            )
        self.total += (error.square().mean(dim=(1, 2, 3)).sqrt() * unit).sum()
        self.count += len(error)

    def compute(self) -> Tensor:
        """The mean so far."""
        return self.total / self.count


class EndPointError(Metric):
    """The mean over images and pixels of the length of the flow's error, in the unit that `update` is given."""

    higher_is_better = False
    total: Tensor
    count: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor, unit: Tensor) -> None:
        """Count a batch: output and target [B, 2, H, W], unit [B]."""
        error = torch.linalg.vector_norm((output - target).double(), dim=1)
        self.total += (error.mean(dim=(1, 2)) * unit).sum()
        self.count += len(error)

    def compute(self) -> Tensor:
        """The mean so far."""
        return self.total / self.count
