"""Numbers and labels as colours."""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Pixels = npt.NDArray[np.uint8]  # [H, W, 3], RGB; or [H, W], places in a palette
Numbers = npt.NDArray[np.float32]  # [H, W]

# Ten colours from matplotlib's viridis, from the smallest number to the largest.
_RAMP = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")
_LESS, _MORE = (33, 76, 170), (178, 32, 38)


def labels_palette() -> Pixels:
    """The label colours of PASCAL VOC, [256, 3]: a label's bits, three by three, are the highest bits of RGB."""
    label = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((label >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def ramp(share: npt.NDArray[Any]) -> Pixels:
    """Map numbers in 0..1 to colours from dark blue to bright yellow, in a new last axis RGB."""
    anchors = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in _RAMP])
    return _between(share, np.linspace(0, 1, len(anchors)), anchors)


def ramp_palette() -> Pixels:
    """The 256 colours of `ramp`."""
    return ramp(np.linspace(0, 1, 256))


def difference_palette() -> Pixels:
    """256 colours from blue over white, at 128, to red."""
    return _between(np.arange(256), np.array([0, 128, 255]), np.array([_LESS, (255, 255, 255), _MORE]))


def places(values: Numbers, low: float, high: float) -> Pixels:
    """Map numbers from `low` to `high` to indices of a palette of 256, clipped at both ends."""
    share = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-30)
    return np.asarray((share.clip(0, 1) * 255).round(), dtype=np.uint8)


def from_tensor(image: Tensor, low: float, high: float) -> Pixels:
    """[3, H, W] or [1, H, W] as RGB, `low` black and `high` white."""
    grey = places(image.detach().float().cpu().numpy(), low, high)
    return np.ascontiguousarray(np.broadcast_to(grey, (3, *grey.shape[1:])).transpose(1, 2, 0))


def _between(x: npt.NDArray[Any], at: npt.NDArray[Any], colours: npt.NDArray[Any]) -> Pixels:
    return np.stack([np.interp(x, at, colours[:, i]).round() for i in range(3)], axis=-1).astype(np.uint8)
