"""PIL images as maps and as guides. Imports Pillow when there is an image of it."""

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from hotswap.choices import DEPTH, LABELS
from hotswap.errors import HotswapError

if TYPE_CHECKING:
    from PIL import Image

Array = npt.NDArray[Any]
_LABELS = ("1", "L", "P")


def is_picture(given: Any) -> "TypeGuard[Image.Image]":
    """Whether it is an image of Pillow's."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(given, pillow.Image)


def values_of(map: "Image.Image") -> tuple[Array, str]:
    """The numbers of a picture that is a map, [h, w], and their kind.

    Raises:
        HotswapError: where it is a picture in colours.
    """
    mode = map.mode
    if mode not in _LABELS and mode != "F" and not mode.startswith("I"):
        raise HotswapError(
            f"a picture that is a map must be grey, have a palette, or 16 bits, got one of the kind {mode!r}; "
            "give labels as indices"
        )
    return np.array(map), LABELS if mode in _LABELS else DEPTH


def like(map: "Image.Image", values: Array) -> "Image.Image":
    """A picture of these numbers, of the same kind and palette; a grey one of the labels of a logit."""
    from PIL import Image

    picture = Image.fromarray(values.astype(np.uint8) if values.dtype == np.int64 else values)
    if map.mode == "P":
        picture.putpalette(map.getpalette("RGB") or [])
    return picture


def pixels_of(image: "Image.Image") -> Array:
    """A picture that guides: uint8, [H, W] of a grey one, else [H, W, 3].

    Raises:
        HotswapError: where it has more than 8 bits a channel.
    """
    if image.mode.startswith(("I", "F")):
        raise HotswapError(
            f"image must have 8 bits a channel, got a picture of the kind {image.mode!r}; convert it first"
        )
    grey = image.mode in ("1", "L")
    return np.array(image.convert("L" if grey else "RGB"))
