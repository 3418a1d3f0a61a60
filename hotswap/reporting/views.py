"""The pictures of one target on one image: the map of 1 - K, and K in full at a few pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hotswap import colours
from hotswap.reporting import encoding
from hotswap.reporting.encoding import Picture
from hotswap.reporting.figures import Place, Windows

_LARGEST_TABLE = 7  # windows up to this size are shown as numbers


@dataclass(frozen=True)
class Window:
    """K at one pixel: rows of numbers, None outside the image; a picture where the window is large."""

    number: int  # of the place
    rows: tuple[tuple[float | None, ...], ...]
    picture: Picture | None
    alt: str


@dataclass(frozen=True)
class View:
    """One target on one image."""

    image: str
    size: tuple[int, int]
    deviation: float
    map: Picture
    marks: tuple[Place, ...]
    windows: tuple[Window, ...]


def reach_of(views: Sequence[Windows]) -> float:
    """The 1 - K that is drawn brightest: nearly the largest of all images, so that pictures can be compared."""
    values = [np.quantile(np.nan_to_num(np.abs(seen.change)), 0.995) for seen in views]
    return max((float(value) for value in values), default=0.0) or 1.0


def view(image: str, places: tuple[Place, ...], seen: Windows, reach: float) -> View:
    """Draw one target on one image; `reach` is the 1 - K that is drawn brightest."""
    drawn = encoding.indexed(colours.places(seen.change, 0.0, reach), colours.ramp_palette())
    windows = tuple(_window(number, at) for number, at in enumerate(seen.at, start=1))
    return View(image, seen.size, seen.deviation, drawn, places, windows)


def _window(number: int, kernel: Any) -> Window:
    rows = tuple(tuple(None if math.isnan(k) else float(k) for k in row) for row in kernel)
    finite = [k for row in rows for k in row if k is not None]
    low, high = min(finite, default=1.0), max(finite, default=1.0)
    alt = f"K at pixel {number}, {len(rows)} by {len(rows[0])}: {low:.2f} to {high:.2f}"
    if max(kernel.shape) <= _LARGEST_TABLE:
        return Window(number, rows, None, alt)
    grey = colours.places(np.asarray(kernel, dtype=np.float32), 0.0, 1.0)
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    return Window(number, (), encoding.indexed(grey, palette), alt)
