"""Joint upsampling without training, called as the networks are: low [B, C, h, w], guide -> [B, C, H, W]."""

import torch.nn.functional as F
from torch import Tensor, nn

from pac_ops import joint_bilateral_upsample
from recipes.networks.joint import check_pair

MODES = ("nearest", "bilinear", "bicubic")


class Interpolation(nn.Module):
    """Enlarge to the guide's size, whose values are ignored.

    Args:
        mode: "nearest", "bilinear" or "bicubic", as in `torch.nn.functional.interpolate`.

    Raises:
        ValueError: where the mode is another, or, called, map and guide do not belong together.
    """

    def __init__(self, mode: str = "bicubic") -> None:
        super().__init__()
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self.mode = mode

    def forward(self, low: Tensor, guide: Tensor) -> Tensor:
        """Enlarge; see the class."""
        check_pair(low, guide)
        return F.interpolate(low, size=guide.shape[2:], mode=self.mode)


class JointBilateral(nn.Module):
    """Joint bilateral upsampling (Kopf et al., SIGGRAPH 2007); see `pac_ops.joint_bilateral_upsample`.

    Args:
        sigma_color: of the guide's colours, in its unit.
        sigma_space: in coarse pixels.
        kernel_size: the window in coarse pixels, odd.

    Raises:
        ValueError: where, called, an argument is out of range or map and guide do not belong together.
    """

    def __init__(self, sigma_color: float = 0.1, sigma_space: float = 1.0, kernel_size: int = 5) -> None:
        super().__init__()
        self.sigma_color, self.sigma_space, self.kernel_size = sigma_color, sigma_space, kernel_size

    def forward(self, low: Tensor, guide: Tensor) -> Tensor:
        """Enlarge; see the class."""
        check_pair(low, guide)
        return joint_bilateral_upsample(low, guide, self.sigma_color, self.sigma_space, self.kernel_size)


class GuidedFilter(nn.Module):
    """Bilinear enlargement, then the guided filter (He et al., ECCV 2010) of kornia.

    Args:
        radius: of the window, in fine pixels.
        eps: what is added to the guide's variance, in its squared unit: the larger, the smoother.

    Raises:
        ValueError: where an argument is out of range, or, called, map and guide do not belong together.
    """

    def __init__(self, radius: int = 8, eps: float = 1e-3) -> None:
        super().__init__()
        if radius < 1:
            raise ValueError(f"radius must be at least 1 pixel, got {radius}")
        if not eps > 0:
            raise ValueError(f"eps must be positive, got {eps}")
        self.radius, self.eps = radius, eps

    def forward(self, low: Tensor, guide: Tensor) -> Tensor:
        """Enlarge; see the class."""
        from kornia.filters import guided_blur

        check_pair(low, guide)
        enlarged = F.interpolate(low, size=guide.shape[2:], mode="bilinear")
        filtered: Tensor = guided_blur(guide, enlarged, 2 * self.radius + 1, self.eps)
        return filtered
