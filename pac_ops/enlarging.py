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
        (rows, _), (columns, _) = self._both(coarse, fine, device)
        return rows, columns

    def weights(self, coarse: Pair, fine: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
        """Their weights down, [Ho, n], and across, [Wo, n]: 0 for those that do not count; not normalised."""
        (_, down), (_, across) = self._both(coarse, fine, device)
        return down, across

    def _both(self, coarse: Pair, fine: Pair, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        if self.band is None:
            return [self._axis(axis, coarse, fine, device) for axis in (0, 1)]
        first, last, height = self.band
        (near, weight), across = (self._axis(axis, coarse, (height, fine[1]), device) for axis in (0, 1))
        return [(near[first:last], weight[first:last]), across]

    def _axis(self, axis: int, coarse: Pair, fine: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
        exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        last, reach = coarse[axis] - 1, self.footprint // 2
        pixel = torch.arange(fine[axis], dtype=exact, device=device)[:, None]
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
        near = place.floor() + torch.arange(1 - reach, 1 + reach, dtype=exact, device=device)
        weight = (1 - (place - near).abs() / reach).clamp_min(0)
        inside = (near >= 0) & (near <= last)
        return near.clamp(0, last).long(), weight * inside


def _stays(axis: int, coarse: Pair, fine: Pair, device: torch.device) -> int:
    """1 where an axis is copied because it stays as long, else 0; arithmetic, as an exporter leaves sizes open."""
    stays: list[Any] = [1 - torch.sym_min(fine[k] - coarse[k], 1) for k in (0, 1)]
    copied: int = stays[axis] if device.type == "cpu" else stays[0] * stays[1]
    return copied
