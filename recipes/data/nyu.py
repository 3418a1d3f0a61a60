"""Depth: NYU depth v2's labelled images (Silberman et al., ECCV 2012), from `nyu_depth_v2_labeled.mat`.

The file is MATLAB's version 7.3, which is HDF5 with the axes the other way round: `images` is (N, 3, W, H) of bytes
and `depths` (N, W, H) of float32, in metres.
"""

from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hotswap.errors import HotswapError
from recipes.data.cropping import Cropping
from recipes.data.files import PathLike, Source, as_image

Split = Literal["train", "test"]

FILE = "nyu_depth_v2_labeled.mat"
COUNT, TRAIN = 1449, 1000  # images; the first of them train
NYU = Source("NYU depth v2", f"get {FILE} (2.8 GB) from the page of NYU Depth Dataset V2")


class NyuDepth(Dataset[tuple[Tensor, Tensor]]):
    """Images [3, H, W] in 0..1 and depth [1, H, W] in metres, 640 pixels wide and 480 high.

    Args:
        root: the folder of `nyu_depth_v2_labeled.mat`.
        split: "train", the first 1,000 images, or "test", the last 449.
        crop: height and width of random crops; whole images without it.

    Raises:
        HotswapError: where an argument is out of range; later, where the file is missing or damaged.
    """

    def __init__(self, root: PathLike, split: Split, *, crop: int | None = None) -> None:
        if split not in get_args(Split):
            raise HotswapError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        self.path, self.split = Path(root) / FILE, split
        self.cropping = None if crop is None else Cropping(crop, flip=False)

    def __len__(self) -> int:
        return TRAIN if self.split == "train" else COUNT - TRAIN

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of all images; checks the file first."""
        with NYU.reading(self.path), h5py.File(self.path) as file:
            for name in ("images", "depths"):
                if not isinstance(file.get(name), h5py.Dataset):
                    raise NYU.error(self.path, f"must hold {name!r}, got {', '.join(file) or 'nothing'}")
            images, depths = file["images"].shape, file["depths"].shape
        if len(images) != 4 or images[:2] != (COUNT, 3) or depths != (COUNT, *images[2:]):
            raise NYU.error(
                self.path,
                f"must hold images ({COUNT}, 3, W, H) and depths ({COUNT}, W, H), got {images} and {depths}",
            )
        return images[3], images[2]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        height, width = self.size
        at = index if self.split == "train" else TRAIN + index
        # Opened for every image: an open HDF5 file does not survive the fork of a loader's workers.
        with NYU.reading(self.path), h5py.File(self.path) as file:
            pixels, metres = file["images"][at], file["depths"][at]
        image = as_image(np.ascontiguousarray(pixels.transpose(2, 1, 0)))
        depth = torch.from_numpy(np.ascontiguousarray(metres.T)).float()[None]
        if not bool(torch.isfinite(depth).all()):
            raise NYU.error(self.path, f"is damaged: depth {at} of {height} x {width} pixels is not finite")
        return (image, depth) if self.cropping is None else self.cropping(image, depth)
