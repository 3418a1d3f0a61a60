"""Joint upsampling with PAC-transposed layers (Su et al., CVPR 2019, section 4.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pac_ops import PacConvTranspose2d, packernel2d
from recipes.networks.joint import check_pair

FACTORS = (4, 8, 16)
_WINDOW, _PADDING, _EXTRA = 5, 2, 1  # of the PAC-transposed layers: exactly twice the size


@dataclass(frozen=True)
class Widths:
    """Channels of the network's parts."""

    target: tuple[int, int, int]  # of branch_t
    guide: tuple[int, int]  # of branch_g before its last layer, which has guide_step for every step
    decoder: tuple[int, ...]  # of the PAC-transposed layers and of branch_f before its last layer
    guide_step: int  # guide channels of every PAC-transposed layer


STANDARD = {
    factor: Widths((32, 32, 32), (32, 32), (32,) * (steps + 1), 16) for steps, factor in enumerate(FACTORS, start=2)
}
# About as many parameters as DJF.
LITE = {
    4: Widths((12, 16, 22), (12, 22), (12, 16, 22), 12),
    8: Widths((12, 16, 16), (12, 16), (12, 16, 16, 20), 12),
    16: Widths((8, 16, 16), (8, 16), (8, 16, 16, 16, 16), 10),
}


class PacUpsampling(nn.Module):
    """Enlarge a coarse map along a guide: low [B, C, h, w], guide [B, 3, factor h, factor w] -> [B, C, H, W].

    An encoder for the coarse map (`branch_t`), one for the guide (`branch_g`), a 5 x 5 PAC-transposed layer for every
    doubling (`up_convts`), each with its own share of the guide's channels resized to its output, and a decoder
    (`branch_f`). Every channel of the map is enlarged by itself, with the same weights.

    Args:
        factor: 4, 8 or 16.
        lite: fewer channels, for about as many parameters as `DJF` has.

    Raises:
        ValueError: where the factor is another, or, called, the guide is not `factor` times as large.
    """

    def __init__(self, factor: int = 4, lite: bool = False) -> None:
        super().__init__()
        if factor not in FACTORS:
            raise ValueError(f"factor must be one of {', '.join(map(str, FACTORS))}, got {factor!r}")
        widths = (LITE if lite else STANDARD)[factor]
        self.factor, self.guide_step = factor, widths.guide_step
        decoder, steps = (widths.target[-1], *widths.decoder), len(widths.decoder) - 1
        self.branch_t = _Convolutions((1, *widths.target))
        self.branch_g = _Convolutions((3, *widths.guide, widths.guide_step * steps))
        self.up_convts = nn.ModuleList(
            PacConvTranspose2d(channels, outputs, _WINDOW, 2, _PADDING, _EXTRA)
            for channels, outputs in pairwise(decoder[:-1])
        )
        self.branch_f = _Convolutions((*decoder[-2:], 1))

    def forward(self, low: Tensor, guide: Tensor) -> Tensor:
        """Enlarge; see the class."""
        check_pair(low, guide)
        expected = [self.factor * size for size in low.shape[2:]]
        if list(guide.shape[2:]) != expected:
            raise ValueError(
                f"guide must be {self.factor} times as large as low, {expected}, got {list(guide.shape[2:])}; "
                "crop the guide, or build the network for another factor"
            )
        kernels = self._kernels(guide)
        return torch.cat([self._channel(channel, kernels) for channel in low.split(1, dim=1)], dim=1)

    def _kernels(self, guide: Tensor) -> list[Tensor]:
        """K of every step, shared by all channels of the map."""
        height, width = guide.shape[2:]
        kernels = []
        for step, features in enumerate(self.branch_g(guide).split(self.guide_step, dim=1), start=1):
            shrink = self.factor >> step
            if shrink > 1:
                features = F.interpolate(features, size=(height // shrink, width // shrink), mode="bilinear")
            kernels.append(packernel2d(features, None, _WINDOW, 2, _PADDING, _EXTRA, transposed=True)[0])
        return kernels

    def _channel(self, x: Tensor, kernels: list[Tensor]) -> Tensor:
        x = self.branch_t(x)
        for layer, kernel in zip(self.up_convts, kernels, strict=True):
            x = F.relu(layer(x, None, kernel))
        enlarged: Tensor = self.branch_f(x)
        return enlarged


class _Convolutions(nn.Module):
    """`conv1`, `conv2`, ... of 5 x 5 that keep the size, with a ReLU between them and none after the last.

    [B, widths[0], H, W] -> [B, widths[-1], H, W].
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        for index, (channels, outputs) in enumerate(pairwise(widths), start=1):
            self.add_module(f"conv{index}", nn.Conv2d(channels, outputs, 5, padding=2))

    def forward(self, x: Tensor) -> Tensor:
        """Apply all of them; see the class."""
        for index, conv in enumerate(self.children()):
            x = conv(F.relu(x) if index else x)
        return x
