"""Deep joint filtering (Li et al., ECCV 2016), the baseline with ordinary convolutions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipes.networks.joint import check_pair

ENLARGEMENTS = ("bicubic", "bilinear")


class DJF(nn.Module):
    """Enlarge a coarse map along a guide: low [B, C, h, w], guide [B, 3, H, W] -> [B, C, H, W].

    The coarse map is enlarged; `branch_t` sees it, `branch_g` the guide, `joint` both. Every channel of the map goes
    through by itself, with the same weights.

    Args:
        enlarge: how the coarse map is enlarged first: "bicubic", as in Li et al., or "bilinear", as in the published
            code of PAC.

    Raises:
        ValueError: where it is another, or, called, map and guide do not belong together.
    """

    def __init__(self, enlarge: str = "bicubic") -> None:
        super().__init__()
        if enlarge not in ENLARGEMENTS:
            raise ValueError(f"enlarge must be one of {', '.join(ENLARGEMENTS)}, got {enlarge!r}")
        self.enlarge = enlarge
        self.branch_t, self.branch_g = _branch(1), _branch(3)
        self.joint = nn.Sequential(
            nn.Conv2d(2, 64, 9, padding=4),
            nn.ReLU(),
            nn.Conv2d(64, 32, 1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 5, padding=2),
        )

    def forward(self, low: Tensor, guide: Tensor) -> Tensor:
        """Enlarge; see the class."""
        check_pair(low, guide)
        seen = self.branch_g(guide)
        enlarged = F.interpolate(low, size=guide.shape[2:], mode=self.enlarge)
        channels = [self.joint(torch.cat((self.branch_t(x), seen), dim=1)) for x in enlarged.split(1, dim=1)]
        return torch.cat(channels, dim=1)


def _branch(channels: int) -> nn.Sequential:
    """A branch. The 9 x 9 layer crops 4 pixels, and the padding of the 1 x 1 layer adds them again."""
    return nn.Sequential(
        nn.Conv2d(channels, 96, 9, padding=2),
        nn.ReLU(),
        nn.Conv2d(96, 48, 1, padding=2),
        nn.ReLU(),
        nn.Conv2d(48, 1, 5, padding=2),
    )
