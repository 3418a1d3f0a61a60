"""Semantic segmentation: PASCAL VOC 2012 with the labels of SBD (Hariharan et al., ICCV 2011).

Layout of the root, which is torchvision's:

    VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}
    TrainVal/VOCdevkit/VOC2011/ImageSets/Segmentation/{train,val}.txt
    sbd/{img,cls,train.txt}

Of VOC 2011 only the two lists are needed; its pictures are among those of VOC 2012.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import scipy.io
import torch
from torch import Tensor
from torch.utils.data import Dataset

from hotswap.errors import HotswapError
from hotswap.zoo.images import opened
from recipes.data.cropping import IGNORED, Cropping, padded
from recipes.data.files import PathLike, Source, read_image

Split = Literal["train11", "val11_sbd"]

SIZES = {"train11": 8825, "val11_sbd": 736}  # of the whole data sets
CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

VOC = Source(
    "VOC 2012",
    "get VOCtrainval_11-May-2012.tar from the PASCAL VOC 2012 page, or torchvision.datasets.VOCSegmentation(root, "
    'year="2012", download=True)',
)
VOC_2011 = Source(
    "VOC 2011 lists",
    "get VOCtrainval_25-May-2011.tar from the PASCAL VOC 2011 page; of it TrainVal/VOCdevkit/VOC2011/ImageSets is "
    "needed",
)
SBD = Source(
    "SBD",
    "get benchmark.tgz from the page of the Semantic Boundaries Dataset and put its folder benchmark_RELEASE/dataset "
    "into the root as sbd",
)


@dataclass(frozen=True)
class _Item:
    """A picture, its labels, and the reader of the labels."""

    image: Path
    labels: Path
    source: Source
    read_labels: Callable[[Path], npt.NDArray[np.uint8]]


class VocSbd(Dataset[tuple[Tensor, Tensor]]):
    """Images [3, H, W] in 0..1 and labels [H, W], int64: 0 background, 1 to 20 classes, 255 to be ignored.

    `val11_sbd` is VOC 2011's validation set without what SBD trains on, 736 images; `train11` is VOC 2011's training
    set and SBD's without `val11_sbd`, 8,825 images. Both are computed from the data sets' own lists. An image that
    both label has VOC's labels, which are finer.

    Args:
        root: the folder described above this class's module.
        split: "train11" or "val11_sbd".
        crop: height and width of random crops; whole images without it.
        flip: mirror half of the images; only with `crop`.
        multiple: fill images up to multiples of it, below and to the right, for networks that need that.

    Raises:
        HotswapError: where an argument is out of range; later, where a file is missing or damaged.
    """

    def __init__(
        self, root: PathLike, split: Split, *, crop: int | None = None, flip: bool = False, multiple: int = 1
    ) -> None:
        if split not in get_args(Split):
            raise HotswapError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        if flip and crop is None:
            raise HotswapError("flip needs crop, such as 449: images of a batch must be of one size")
        if multiple < 1:
            raise HotswapError(f"multiple must be at least 1 pixel, got {multiple}")
        self.root, self.split, self.multiple = Path(root), split, multiple
        self.cropping = None if crop is None else Cropping(crop, flip=flip)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def names(self) -> list[str]:
        """The names of the images of this split, such as 2007_000032, in order."""
        sbd = self._sbd
        validation = self._voc_2011("val") - sbd
        if self.split == "val11_sbd":
            return sorted(validation)
        return sorted((self._voc_2011("train") | sbd) - validation)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        item = self._item(self.names[index])
        image = read_image(item.image, item.source)
        with item.source.reading(item.labels):
            labels = torch.from_numpy(item.read_labels(item.labels)).long()
        if labels.shape != image.shape[1:]:
            raise item.source.error(item.labels, f"must be of its image's size, {list(image.shape[1:])}")
        wrong = labels[(labels >= len(CLASSES)) & (labels != IGNORED)]
        if wrong.numel():
            raise item.source.error(item.labels, f"must hold labels from 0 to 20 and {IGNORED}, got {int(wrong[0])}")
        if self.cropping is not None:
            image, labels = self.cropping(image, labels)
        return (image, labels) if self.multiple == 1 else padded(image, labels, self.multiple)

    def _item(self, name: str) -> _Item:
        voc, sbd = self.root / "VOCdevkit" / "VOC2012", self.root / "sbd"
        if name in self._voc:
            labels = voc / "SegmentationClass" / f"{name}.png"
            return _Item(voc / "JPEGImages" / f"{name}.jpg", labels, VOC, _voc_labels)
        if name in self._sbd:
            return _Item(sbd / "img" / f"{name}.jpg", sbd / "cls" / f"{name}.mat", SBD, _sbd_labels)
        raise VOC.error(_list(voc, "trainval"), f"does not list {name}, which VOC 2011 does")

    @cached_property
    def _voc(self) -> set[str]:
        return _listed(_list(self.root / "VOCdevkit" / "VOC2012", "trainval"), VOC)

    @cached_property
    def _sbd(self) -> set[str]:
        return _listed(self.root / "sbd" / "train.txt", SBD)

    def _voc_2011(self, image_set: str) -> set[str]:
        return _listed(_list(self.root / "TrainVal" / "VOCdevkit" / "VOC2011", image_set), VOC_2011)


def _voc_labels(path: Path) -> npt.NDArray[np.uint8]:
    with opened(path) as palette:
        return np.array(palette)


def _sbd_labels(path: Path) -> npt.NDArray[np.uint8]:
    labels: npt.NDArray[np.uint8] = scipy.io.loadmat(path)["GTcls"][0]["Segmentation"][0]
    return labels


def _list(devkit: Path, image_set: str) -> Path:
    return devkit / "ImageSets" / "Segmentation" / f"{image_set}.txt"


def _listed(path: Path, source: Source) -> set[str]:
    """The names of images in a list."""
    with source.reading(path):
        return set(path.read_text(encoding="utf-8").split())
