"""Readers of data files, with errors that name the file and its source."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hotswap.errors import HotswapError, one_line
from hotswap.files import flo
from hotswap.files.atomic import is_file, is_folder, is_there
from hotswap.zoo.images import opened

PathLike = str | os.PathLike[str]


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
    try:
        flow = flo.parse(raw)
    except ValueError as error:
        raise source.error(path, str(error)) from error
    return torch.from_numpy(flow).permute(2, 0, 1).contiguous()
