"""Which coarse pixels each fine pixel of a bilinear enlargement is made of, and their weights."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pac_ops.geometry import Pair

FOOTPRINTS = (2, 4)


class Enlargement(NamedTuple):
    """Where the coarse pixels lie, as `torch.nn.functional.interpolate` takes it, and how many count along each axis.

    With footprint 2 neighbours and weights are those of mode="bilinear": 2 x 2 under a tent that ends at the next
    pixel. With footprint 4 they are 4 x 4, under a tent of twice the width.
    """

    scale_factor: Sequence[float] | None  # vertical, horizontal; None where the sizes alone say it
    align_corners: bool
    footprint: int

    def neighbours(self, coarse: Pair, fine: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rows, [Ho, n], and columns, [Wo, n], of fine pixels' neighbours, one repeated where there are fewer."""
        rows, columns = (self._axis(axis, coarse[axis], fine[axis], device)[0] for axis in (0, 1))
        return rows, columns

    def weights(self, coarse: Pair, fine: Pair, device: torch.device) -> tuple[Tensor, Tensor]:
        """Their weights down, [Ho, n], and across, [Wo, n]: 0 for those that do not count; not normalised."""
        down, across = (self._axis(axis, coarse[axis], fine[axis], device)[1] for axis in (0, 1))
        return down, across

    def _axis(self, axis: int, coarse: int, fine: int, device: torch.device) -> tuple[Tensor, Tensor]:
        exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        pixel = torch.arange(fine, dtype=exact, device=device)[:, None]
        if self.align_corners:
            place = pixel * ((coarse - 1) / max(fine - 1, 1))
        else:
            step = coarse / fine if self.scale_factor is None else 1 / self.scale_factor[axis]
            place = (pixel + 0.5) * step - 0.5
        place = place.clamp(0, coarse - 1)
        reach = self.footprint // 2
        near = place.floor() + torch.arange(1 - reach, 1 + reach, dtype=exact, device=device)
        weight = (1 - (place - near).abs() / reach).clamp_min(0)
        inside = (near >= 0) & (near <= coarse - 1)
        return near.clamp(0, coarse - 1).long(), weight * inside
