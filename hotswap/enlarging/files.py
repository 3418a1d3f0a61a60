"""Maps in files."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from hotswap.errors import HotswapError, one_line
from hotswap.files.atomic import PathLike, atomic_write
from hotswap.files.destinations import ARRAYS, suffix
from hotswap.zoo.images import opened

Array = npt.NDArray[Any]
_BYTE, _WORD = 255, 65535


def read(path: PathLike) -> "Array | Image.Image":
    """A map from .npy, or from .png.

    Raises:
        HotswapError: where it cannot be read, in one line.
    """
    try:
        if suffix(path) in ARRAYS:
            array: Array = np.load(path, allow_pickle=False)
            return array
        with opened(path) as picture:
            picture.load()
            return picture.copy()
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise HotswapError(f"cannot read map {str(path)!r} ({one_line(error)})") from error


def write(path: PathLike, result: "Array | Image.Image") -> None:
    """Write a map to .npy, or labels and depth of whole numbers to .png. Labels take 1 byte a pixel where they fit.

    Raises:
        HotswapError: where a picture cannot hold it, or it cannot be written; there is then no new file.
    """
    picture = None if suffix(path) in ARRAYS else _picture(path, result)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        if picture is None:
            np.save(file, _small(np.asarray(result)))
        else:
            picture.save(file, format="PNG")


def _small(x: Array) -> Array:
    return x.astype(np.uint8) if x.dtype == np.int64 and 0 <= x.min() <= x.max() <= _BYTE else x


def _picture(path: PathLike, content: "Array | Image.Image") -> Image.Image:
    if isinstance(content, Image.Image):
        if content.mode == "F":
            raise HotswapError(f"a picture cannot hold floating numbers; name {str(path)!r} with .npy")
        return content
    if content.ndim != 2 or content.dtype.kind not in "iub":
        raise HotswapError(
            f"a picture holds whole numbers [h, w], got {content.dtype} {list(content.shape)}; name {str(path)!r} "
            "with .npy, or ask for labels (--labels)"
        )
    if content.dtype.kind == "b":
        return Image.fromarray(content)
    low, high = int(content.min()), int(content.max())
    if low < 0 or high > _WORD:
        raise HotswapError(
            f"a picture holds numbers from 0 to {_WORD}, got {low} to {high}; name {str(path)!r} with .npy"
        )
    return Image.fromarray(content.astype(np.uint8 if high <= _BYTE else np.uint16))
