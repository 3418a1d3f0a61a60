"""Tiny data sets in the exact layouts of the real ones."""

import struct
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import scipy.io
import scipy.sparse
from PIL import Image

SIZE = (20, 24)  # height and width
random = np.random.default_rng(0)


def picture(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def labels(size: tuple[int, int] = SIZE) -> np.ndarray:
    return random.integers(0, 21, size, dtype=np.uint8)


def text(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


# Of a tiny VOC with SBD, in which images are in one list, in several, or in none.
LISTS = {
    "train11": ["2007_a", "2008_b", "2008_c"],
    "val11": ["2009_d", "2009_e", "2010_f"],
    "trainval12": ["2007_a", "2008_b", "2008_c", "2009_d", "2009_e", "2010_f", "2011_new"],
    "sbd": ["2008_c", "2009_e", "2010_g", "2011_h"],
}


def voc(root: Path, listed: dict[str, list[str]], size: tuple[int, int] = SIZE) -> Path:
    """`listed`: the lists by name: train11, val11, trainval12 and sbd."""
    devkit = root / "VOCdevkit" / "VOC2012"
    for name in listed["trainval12"]:
        picture(devkit / "JPEGImages" / f"{name}.jpg", size)
        values = labels(size)
        values[0, :5] = 255
        mask = Image.fromarray(values)
        mask.putpalette([i for c in range(256) for i in (c, 255 - c, c // 2)])
        path = devkit / "SegmentationClass" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)
    text(devkit / "ImageSets" / "Segmentation" / "trainval.txt", listed["trainval12"])
    for part in ("train", "val"):
        folder = root / "TrainVal" / "VOCdevkit" / "VOC2011" / "ImageSets" / "Segmentation"
        text(folder / f"{part}.txt", listed[f"{part}11"])
    for name in listed["sbd"]:
        picture(root / "sbd" / "img" / f"{name}.jpg", size)
        sbd_labels(root / "sbd" / "cls" / f"{name}.mat", labels(size))
    text(root / "sbd" / "train.txt", listed["sbd"])
    return root


def sbd_labels(path: Path, values: np.ndarray) -> None:
    """A MATLAB struct GTcls with Boundaries (a cell of sparse maps), Segmentation and CategoriesPresent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), object)
    for index in range(20):
        boundaries[index, 0] = scipy.sparse.csc_matrix((values == index + 1).astype(float))
    present = np.unique(values[values > 0]).astype(np.uint8)[:, None]
    inside = {"Boundaries": boundaries, "Segmentation": values, "CategoriesPresent": present}
    scipy.io.savemat(path, {"GTcls": inside}, do_compression=True)


def nyu(root: Path, size: tuple[int, int] = SIZE, count: int = 1449) -> Path:
    """Axes as HDF5 shows those of MATLAB: the last first. Image and depth of number n begin with n."""
    height, width = size
    images = random.integers(0, 256, (count, 3, width, height), dtype=np.uint8)
    depths = random.uniform(1, 9, (count, width, height)).astype(np.float32)
    images[:, 0, 0, 0] = np.arange(count) % 256
    depths[:, 0, 0] = np.arange(count)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"], file["depths"] = images, depths
    return root


def flo(path: Path, flow: np.ndarray) -> None:
    """`flow`: [H, W, 2]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"PIEH" + struct.pack("<ii", flow.shape[1], flow.shape[0]) + flow.astype("<f4").tobytes())


# Of the real data set: pairs of the scenes that the split names, and of one that trains.
SCENES = {"ambush_6": 19, "market_6": 39, "bamboo_2": 49, "cave_4": 49, "temple_2": 49, "alley_1": 3}


def sintel(root: Path, size: tuple[int, int] = SIZE, scenes: dict[str, int] | None = None) -> Path:
    """In every scene a picture more than flows; the flow of frame n begins with n."""
    for scene, pairs in (scenes or SCENES).items():
        for number in range(1, pairs + 2):
            picture(root / "training" / "clean" / scene / f"frame_{number:04d}.png", size)
            if number <= pairs:
                flow = random.normal(0, 3, (*size, 2))
                flow[0, 0] = number, -number
                flo(root / "training" / "flow" / scene / f"frame_{number:04d}.flo", flow)
    return root
