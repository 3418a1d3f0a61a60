"""The adapter between a guide activation and a target: what a rewritten forward calls."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

import pac_ops
from hotswap.errors import HotswapError
from pac_ops.geometry import Window
from pac_ops.layers import pad_as

RESIZE_MODES = ("bilinear", "area", "nearest")
Size = tuple[int, int, int]


def image_size(target: str, x: Any) -> Size:
    """Batch, height and width of a target's input.

    Raises:
        HotswapError: where it is no [B, C, H, W] tensor.
    """
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise HotswapError(f"the input of target {target!r} must be a [B, C, H, W] tensor, got {_describe(x)}")
    return x.shape[0], x.shape[2], x.shape[3]


def window_distance(
    guide_name: str,
    guide: Any,
    size: Size,
    window: Window,
    padding_mode: str,
    resize: str,
    previous: tuple[Size, Tensor] | None = None,
) -> tuple[Size, Tensor]:
    """||f_i - f_j||^2 over a target's window, of the guide resized to the target's input size.

    Args:
        guide_name: for error messages.
        guide: [B, G, h, w].
        size: batch, height and width of the target's input.
        window: of the target.
        padding_mode: of the target; other than "zeros", the guide is padded alike.
        resize: how the guide gets that height and width: "bilinear", "area" or "nearest".
        previous: what this function returned for another target with the same guide, window and mode; used
            again where that target's input had the same size.

    Returns:
        `size` and the distances, [B, 1, kh, kw, Ho, Wo].

    Raises:
        HotswapError: where the guide is no image-like tensor, or of another batch size.
    """
    if previous is not None and previous[0] == size:
        return previous
    _check_guide(guide_name, guide)
    batch, height, width = size
    if guide.shape[0] != batch:
        raise HotswapError(
            f"guide {guide_name!r} must have the target's batch size {batch}, got {guide.shape[0]}; "
            "take a guide from the same branch"
        )
    resized = resize_to(guide, height, width, resize)
    padded, padding = pad_as(padding_mode, resized, window.padding)
    distance = pac_ops.squared_distance2d(padded, window.kernel_size, window.stride, padding, window.dilation)
    return size, distance


def guide_copy(guide_name: str, guide: Any) -> Tensor:
    """A copy of a guide that the network will overwrite before its last target has read it.

    Raises:
        HotswapError: where the guide is no image-like tensor.
    """
    _check_guide(guide_name, guide)
    copied: Tensor = guide.clone()
    return copied


def resize_to(x: Tensor, height: int, width: int, how: str) -> Tensor:
    """Resize [B, G, h, w] to exactly `height` x `width`; the same tensor where it has that size."""
    if x.shape[2] == height and x.shape[3] == width:
        return x
    if how == "bilinear":
        return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
    return F.interpolate(x, size=(height, width), mode=how)


def _check_guide(guide_name: str, guide: Any) -> None:
    if not isinstance(guide, Tensor) or guide.dim() != 4:
        raise HotswapError(f"guide {guide_name!r} must give a [B, G, H, W] tensor, got {_describe(guide)}")


def _describe(x: Any) -> str:
    return f"a tensor of shape {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
