"""Depth to enlarge along an image: procedural scenes, and one real disparity map that is never trained on."""

import functools

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.utils.data import Dataset

from recipes.data.upsampling import Item, JointUpsampling, LowResolution, shrink
from recipes.scenes import Scenes

LOW_RESOLUTION: LowResolution = "centre_pixel"  # the paper's


def scenes(count: int, factor: int, size: int = 64, seed: int = 0) -> JointUpsampling:
    """Depths of procedural scenes, whose edges are those of the picture; see `JointUpsampling`."""
    drawn = Scenes(count, size=size, truth="depth", seed=seed, keep=True)
    return JointUpsampling(drawn, factor, LOW_RESOLUTION, min_max=True)


class Motorcycle(Dataset[Item]):
    """Tiles of Middlebury 2014's "motorcycle" as scikit-image has it: left image and disparity, 500 x 741 pixels.

    Items are those of `JointUpsampling`, in pixels of disparity. 7 % of the truth is not known, most of it beside
    edges: there the target is nan, and the coarse map has the nearest known value.
    """

    def __init__(self, factor: int, size: int = 240) -> None:
        if size % factor:
            raise ValueError(f"size must be a multiple of the factor {factor}, got {size}")
        guide, disparity = _motorcycle()
        self.factor, self.size, self.guide, self.disparity = factor, size, guide, disparity
        self.corners = [
            (row, column)
            for row in range(0, guide.shape[1] - size + 1, size)
            for column in range(0, guide.shape[2] - size + 1, size)
        ]

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, index: int) -> Item:
        row, column = self.corners[index]
        window = (slice(None), slice(row, row + self.size), slice(column, column + self.size))
        target = self.disparity[window]
        low = shrink(_filled(target), self.factor, LOW_RESOLUTION)
        first, span = low.min(), low.max() - low.min()
        return ((low - first) / span, self.guide[window].contiguous()), ((target - first) / span, span)


@functools.cache
def _motorcycle() -> tuple[Tensor, Tensor]:
    from skimage.data import stereo_motorcycle

    left, _, disparity = stereo_motorcycle()
    known = np.where(np.isfinite(disparity) & (disparity > 0), disparity, np.nan)
    return torch.from_numpy(left).permute(2, 0, 1).float() / 255, torch.from_numpy(known).float()[None]


def _filled(x: Tensor) -> Tensor:
    """[1, H, W] with the nearest known value where one is nan."""
    unknown = x[0].isnan().numpy()
    rows, columns = distance_transform_edt(unknown, return_distances=False, return_indices=True)
    return x[:, torch.from_numpy(rows).long(), torch.from_numpy(columns).long()]
