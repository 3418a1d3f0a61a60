"""Labels in files: indices, colours of PASCAL VOC, masks, depth and flow."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from hotswap.colours import labels_palette
from hotswap.errors import HotswapError, one_line
from hotswap.files import flo
from hotswap.zoo.images import opened

Array = npt.NDArray[Any]
LOSSY = (".jpg", ".jpeg")  # whose values are never exact, so that they can only be masks
_HALF = 127  # of a mask in 8 bits: above it is the class


@dataclass(frozen=True)
class Raw:
    """A file's numbers."""

    values: Array  # [H, W], or [H, W, C]
    bits: int | None  # 8 or 16 of a picture; None of .npy and .flo
    indexed: bool = False  # of a picture with a palette


@dataclass(frozen=True)
class Reader:
    """How the numbers of a whole folder are meant."""

    masks: bool  # one class, bright, on black
    numbers: bool  # depth or flow rather than labels
    unit: float = 1.0  # what numbers are divided by

    def read(self, file: Path) -> Tensor:
        """Labels, int64 [H, W], or numbers, float32 [C, H, W] with nan where they are not known.

        Raises:
            HotswapError: where the file cannot be read, or holds something else.
        """
        raw = read_raw(file)
        if self.numbers:
            return _numbers(file, raw, self.unit)
        values = _plane(file, raw)
        if self.masks:
            bright = values > (_HALF if raw.bits == 8 and values.max() > 1 else 0)
            return torch.from_numpy(bright.astype(np.int64))
        return torch.from_numpy(values.astype(np.int64))


def reader_for(files: Sequence[Path], *, numbers: bool | None, unit: float) -> Reader:
    """Tell from all files of a folder how they are meant.

    Where all files hold 0 and 255 alone, or are JPEG, they are masks; else 255 is an index like others.

    Args:
        files: the labels.
        numbers: whether they are depth or flow rather than labels; None tells it from the files.
        unit: what numbers are divided by.

    Raises:
        HotswapError: where a file cannot be read.
    """
    if numbers is None:
        first = read_raw(files[0])
        numbers = first.values.dtype.kind == "f" or first.bits == 16
    if numbers:
        return Reader(masks=False, numbers=True, unit=unit)
    return Reader(masks=all(_may_be_mask(file) for file in files), numbers=False)


def _may_be_mask(file: Path) -> bool:
    if file.suffix.lower() in LOSSY:
        return True
    raw = read_raw(file)
    if raw.indexed:
        return False
    values = set(np.unique(_plane(file, raw)).tolist())
    return values <= {0, 255} or values <= {0, 1}


def read_raw(file: Path) -> Raw:
    """Read a label's numbers.

    Raises:
        HotswapError: where it cannot be read, in one line.
    """
    suffix = file.suffix.lower()
    try:
        if suffix == ".npy":
            return Raw(np.load(file, allow_pickle=False), None)
        if suffix == ".flo":
            return Raw(flo.parse(file.read_bytes()), None)
        with opened(file) as image:
            return _picture(file, image)
    except HotswapError:
        raise
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise HotswapError(f"cannot read label {str(file)!r} ({one_line(error)})") from error


def _picture(file: Path, image: Image.Image) -> Raw:
    bits = 16 if image.mode.startswith("I") else 8
    if image.mode not in ("1", "L", "P", "RGB", "RGBA") and bits == 8:
        raise HotswapError(
            f"label {str(file)!r} has pixels of the kind {image.mode!r}; write it as a grey PNG of indices"
        )
    shown = image.convert("RGB") if image.mode == "RGBA" else image
    return Raw(np.array(shown, dtype=np.uint8 if image.mode == "1" else None), bits, image.mode == "P")


def _plane(file: Path, raw: Raw) -> Array:
    """Labels [H, W]; of a coloured picture the indices of its colours in PASCAL VOC's palette."""
    values = raw.values
    if values.ndim == 2 and values.dtype.kind in "iub":
        return values
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype != np.uint8:
        raise HotswapError(
            f"label {str(file)!r} must hold whole numbers [H, W], one for each pixel, got {values.dtype} "
            f"{list(values.shape)}"
        )
    grey = (values == values[..., :1]).all() and set(np.unique(values).tolist()) <= {0, 1, 255}
    if grey or file.suffix.lower() in LOSSY:
        return np.asarray(values[..., 0])
    codes = values.astype(np.int64) @ np.array([65536, 256, 1])
    palette = labels_palette().astype(np.int64) @ np.array([65536, 256, 1])
    order = np.argsort(palette)
    places = np.searchsorted(palette[order], codes).clip(0, 255)
    if (unknown := palette[order][places] != codes).any():
        colour = values[unknown][0].tolist()
        raise HotswapError(
            f"label {str(file)!r} has the colour {colour}, which is none of PASCAL VOC's; write labels as indices"
        )
    return np.asarray(order[places])


def _numbers(file: Path, raw: Raw, unit: float) -> Tensor:
    """[C, H, W]; in a picture of 16 bits 0 is not known, and one of 8 bits is a share of 255."""
    values = raw.values
    if values.ndim == 3 and values.shape[2] == 3 and raw.bits == 8 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim not in (2, 3) or values.dtype.kind not in "fiub":
        raise HotswapError(
            f"label {str(file)!r} must hold numbers [H, W] or [H, W, 2], got {values.dtype} {list(values.shape)}"
        )
    x = values.astype(np.float32)
    if raw.bits == 16:
        x[values == 0] = np.nan
    x = x / (255 if raw.bits == 8 else unit)
    first = values.ndim == 3 and values.shape[0] <= 2 < values.shape[2]  # channels come first in some .npy
    channels = x[None] if values.ndim == 2 else x if first else x.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(channels))
