"""Which coarse pixels each fine pixel of a bilinear enlargement is made of, and their weights."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pac_ops.geometry import Pair

FOOTPRINTS = (2, 4)


class Enlargement(NamedTuple):
    """Where the coarse pixels lie, as `torch.nn.functional.interpolate` takes it, and how many count along each axis.

    With footprint 2 neighbours and weights are those of mode="bilinear": 2 x 2 under a tent that ends at the next
    pixel. With footprint 4 they are 4 x 4, under a tent of twice the width.

    A factor below 2 may leave an axis as long as it was: PyTorch copies along it on the CPU, whatever the factor; on
    other devices it copies only where both axes stay as long, and else spaces the pixels as the factor says.
    """

    scale_factor: Sequence[float] | None  # vertical, horizontal; None where the sizes alone say it
    align_corners: bool
    footprint: int
    band: Sequence[int] | None = None  # the fine rows at hand: the first, the one after the last, of how many

    def neighbours(self, coarse: Pair, fine: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rows, [Ho, n], and columns, [Wo, n], of fine pixels' neighbours, one repeated where there are fewer."""
        (_, rows, last), (_, columns, end) = self._places(coarse, fine, device)
        return rows.clamp(0, last).long(), columns.clamp(0, end).long()

    def weights(self, coarse: Pair, fine: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
        """Their weights down, [Ho, n], and across, [Wo, n]: 0 for those that do not count; not normalised."""
        down, across = (self._tent(*axis) for axis in self._places(coarse, fine, device))
        return down, across

    def _tent(self, place: Tensor, near: Tensor, last: int) -> Tensor:
        weight = ((place - near).abs() * (-2 / self.footprint) + 1).clamp_min(0)
        return weight * torch.logical_and(near >= 0, near <= last)

    def _places(self, coarse: Pair, fine: Pair, device: torch.device) -> list[tuple[Tensor, Tensor, int]]:
        """Down and across: where fine pixels lie among coarse ones, [Ho or Wo, 1], the n next to them, the last."""
        if self.band is None:
            return [self._axis(axis, coarse, fine, device) for axis in (0, 1)]
        first, after, height = self.band
        (place, near, last), across = (self._axis(axis, coarse, (height, fine[1]), device) for axis in (0, 1))
        return [(place[first:after], near[first:after], last), across]

    def _axis(self, axis: int, coarse: Pair, fine: Pair, device: torch.device) -> tuple[Tensor, Tensor, int]:
        exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        last, reach = coarse[axis] - 1, self.footprint // 2
        pixel = torch.arange(fine[axis], dtype=exact, device=device).unsqueeze(1)
        if self.align_corners:
            place = pixel * (last / max(fine[axis] - 1, 1))
        elif self.scale_factor is None:
            place = (pixel + 0.5) * (coarse[axis] / fine[axis]) - 0.5
        else:
            place = (pixel + 0.5) * (1 / self.scale_factor[axis]) - 0.5
            if self.scale_factor[axis] < 2:
                copied = _stays(axis, coarse, fine, device)
                place = place * (1 - copied) + pixel * copied
        place = place.clamp(0, last)
        return place, place.floor() + torch.arange(1 - reach, 1 + reach, dtype=exact, device=device), last


def _stays(axis: int, coarse: Pair, fine: Pair, device: torch.device) -> int:
    """1 where an axis is copied because it stays as long, else 0; arithmetic, as an exporter leaves sizes open."""
    stays: list[Any] = [1 - torch.sym_min(fine[k] - coarse[k], 1) for k in (0, 1)]
    copied: int = stays[axis] if device.type == "cpu" else stays[0] * stays[1]
    return copied
