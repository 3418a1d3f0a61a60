"""Readers of data files, with errors that name the file and its source."""

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hotswap.errors import HotswapError, one_line
from hotswap.files.atomic import is_file, is_folder, is_there
from hotswap.zoo.images import opened

PathLike = str | os.PathLike[str]
_FLO_MAGIC = b"PIEH"  # 202021.25 as a little-endian float32
_FLO_LARGEST = 100_000  # pixels along an axis; more is a damaged header


@dataclass(frozen=True)
class Source:
    """A data set, and where to get it."""

    name: str
    where: str

    def error(self, path: PathLike, reason: str) -> HotswapError:
        """The error to raise for a file."""
        return HotswapError(f"{self.name}: {str(path)!r} {reason}; {self.where}")

    @contextmanager
    def reading(self, path: PathLike) -> Iterator[None]:
        """Turn any error of code that reads a file into one line.

        Raises:
            HotswapError: where the file is missing, no file or folder, or the block raises.
        """
        if not is_there(path):
            raise self.error(path, "is missing")
        if not is_file(path) and not is_folder(path):  # reading it might never end
            raise self.error(path, "is a device or a pipe, not a file")
        try:
            yield
        except HotswapError:
            raise
        except Exception as error:  # whatever a decoder makes of damaged bytes
            raise self.error(path, f"cannot be read ({one_line(error)})") from error


def read_image(path: PathLike, source: Source) -> Tensor:
    """A picture as [3, H, W], RGB in 0..1.

    Raises:
        HotswapError: where it is missing or damaged.
    """
    with source.reading(path), opened(path) as image:
        pixels = np.array(image.convert("RGB"))
    return as_image(pixels)


def as_image(pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]") -> Tensor:
    """[H, W, 3] of 0..255 as [3, H, W] of 0..1."""
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255


def read_flo(path: PathLike, source: Source) -> Tensor:
    """Optical flow in the Middlebury format as [2, H, W], in pixels to the right and down, float32.

    Raises:
        HotswapError: where the file is missing, damaged or cut short.
    """
    with source.reading(path):
        raw = Path(path).read_bytes()
    if raw[:4] != _FLO_MAGIC:
        raise source.error(path, f"is no .flo file: it must begin with {_FLO_MAGIC!r}, got {raw[:4]!r}")
    width, height = struct.unpack("<ii", raw[4:12]) if len(raw) >= 12 else (0, 0)
    if not (0 < width < _FLO_LARGEST and 0 < height < _FLO_LARGEST):
        raise source.error(path, f"is damaged: its header says {width} x {height} pixels")
    expected = 12 + 8 * width * height
    if len(raw) != expected:
        raise source.error(path, f"is damaged: it must hold {expected} bytes, got {len(raw)}")
    flow = np.frombuffer(raw, "<f4", offset=12).reshape(height, width, 2)
    return torch.from_numpy(flow.astype(np.float32)).permute(2, 0, 1).contiguous()
