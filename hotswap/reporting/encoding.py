"""Pictures inside a page: data URIs of PNG and JPEG, no larger than they are shown."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from hotswap.colours import Numbers, Pixels

LARGEST = 384  # pixels along the longer side
_QUALITY = 82  # of JPEG


@dataclass(frozen=True)
class Picture:
    """A picture ready for a page."""

    uri: str
    width: int
    height: int


def photograph(pixels: Pixels) -> Picture:
    """RGB as JPEG."""
    image = Image.fromarray(pixels)
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return _encoded(image, "JPEG", quality=_QUALITY)


def indexed(places: Pixels, palette: Pixels) -> Picture:
    """Palette indices as PNG. Large ones are reduced by dropping pixels, so that no colours are mixed."""
    image = Image.fromarray(places, mode="P")
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.NEAREST)
    image.putpalette(palette.tobytes())
    return _encoded(image, "PNG", optimize=True)


def reduced(values: Numbers) -> Numbers:
    """Average a large map down to the size of a picture."""
    height, width = values.shape
    scale = LARGEST / max(height, width)
    if scale >= 1:
        return values
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BOX))


def _encoded(image: Image.Image, kind: str, **options: int) -> Picture:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind.lower()};base64,{data}", image.width, image.height)
