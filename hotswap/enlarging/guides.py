"""Images as they are given, as guides."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hotswap.choices import LAB, RGB
from hotswap.enlarging import maps, pictures
from hotswap.errors import HotswapError
from hotswap.network.names import AUTO
from hotswap.targets.guide_spaces import GuideSpace

_CHANNELS = (1, 3)
_ROWS_PIXELS = 2**20  # pixels that are brought to another space at a time, which takes several times their memory
_ABOVE = 1.001  # what rounding may make of 1


def read(given: Any) -> Tensor:
    """An image as [B, 1 or 3, H, W], uint8 or floating.

    Raises:
        HotswapError: where it is no image.
    """
    if isinstance(given, Tensor):
        x = given.detach()
        if x.layout != torch.strided or x.is_meta:
            raise HotswapError(f"image must be a dense tensor, got {x.layout}, {x.device}")
    elif isinstance(given, np.ndarray):
        x = _channels_first(maps.as_tensor(given))
    elif pictures.is_picture(given):
        x = _channels_first(maps.as_tensor(pictures.pixels_of(given)))
    else:
        raise HotswapError(f"image must be a tensor, a numpy array or a PIL image, got {type(given).__name__}")
    x = x[None] if x.dim() == 2 else x
    x = x[None] if x.dim() == 3 else x
    if x.dim() != 4 or x.shape[1] not in _CHANNELS or not x.numel():
        last = isinstance(given, Tensor) and given.dim() >= 3 and given.shape[-1] in _CHANNELS
        hint = "; a tensor's channels come before its rows" if last else "; leave out alpha" if 4 in x.shape else ""
        raise HotswapError(
            f"image must be grey or RGB, [H, W], [1 or 3, H, W] or [B, 1 or 3, H, W], got {list(given.shape)}{hint}"
        )
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise HotswapError(f"image must be uint8, 0 to 255, or floating, 0 to 1, got {x.dtype}")
    return x


def _channels_first(x: Tensor) -> Tensor:
    """An array's channels come last as a rule; first where only that can be."""
    return x.movedim(-1, -3) if x.dim() >= 3 and x.shape[-1] in _CHANNELS else x


def space_of(given: Any, image: Tensor) -> GuideSpace:
    """The space to guide in.

    Raises:
        HotswapError: where there is no such space, or the image is not in the range that it is for.
    """
    if isinstance(given, GuideSpace):
        if image.dtype == torch.uint8:
            raise HotswapError("a GuideSpace undoes the normalisation of a floating image, got one in uint8")
        return given
    name = LAB if isinstance(given, str) and given == AUTO else given
    if not isinstance(name, str) or name not in (LAB, RGB):
        raise HotswapError(f'space must be "{AUTO}", "{LAB}", "{RGB}" or a hotswap.GuideSpace, got {given!r}')
    if image.is_floating_point():
        low, high = (float(x) for x in image.aminmax())
        if not (low >= 1 - _ABOVE and high <= _ABOVE):  # nan too
            mend = (
                "divide it by 255"
                if low >= 0
                else "undo its normalisation (image * std + mean), or give "
                f'space=hotswap.GuideSpace("{name}", mean, std)'
            )
            raise HotswapError(f"a floating image must be in 0 to 1, got {low:.3g} to {high:.3g}; {mend}")
    count = image.shape[1]
    return GuideSpace(name, (0.0,) * count, (1.0,) * count)


def guide(image: Tensor, space: GuideSpace, device: torch.device) -> Tensor:
    """The image in this space, [B, G, H, W], float32, made a few rows at a time."""
    batch, channels, height, width = image.shape
    out = torch.empty(batch, channels, height, width, device=device)
    high = max(1, _ROWS_PIXELS // max(batch * width, 1))
    for first in range(0, height, high):
        rows = image[:, :, first : first + high].to(device, torch.float32)
        out[:, :, first : first + high] = space(rows / 255 if image.dtype == torch.uint8 else rows)
    return out
