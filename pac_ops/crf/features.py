"""Guides made of position and colour, for conditional random fields."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pac_ops.arguments import check_image
from pac_ops.dtypes import accumulate_dtype
from pac_ops.published import answers

Scale = float | tuple[float, float] | Tensor


def create_position_feats(
    shape: tuple[int, int],
    scales: Scale = 1.0,
    batch: int = 1,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Row and column of every pixel, over a scale: [batch, 2, H, W].

    Args:
        shape: (H, W).
        scales: in pixels; a number, a (vertical, horizontal) pair, or a tensor of 1 or 2 numbers (learnable).
        batch: how many images.
        device: of the result.
        dtype: of the result; the default dtype where None.

    Raises:
        ValueError: where there are other than 1 or 2 scales.
    """
    rows, columns = (torch.arange(n, device=device, dtype=dtype or torch.get_default_dtype()) for n in shape)
    both = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    return (both / _per_channel("scales", scales, 2, both)).expand(batch, -1, -1, -1)


@answers(scales="write yx_scale= and rgb_scale=")
def create_YXRGB(image: Tensor, yx_scale: Scale, rgb_scale: Scale) -> Tensor:  # noqa: N802 (the published name)
    """Row, column and colour of every pixel, each over its scale: [B, 3, H, W] -> [B, 5, H, W].

    In float32 (float64 for a float64 image), as K is.

    Args:
        image: [B, 3, H, W] in any unit.
        yx_scale: in pixels; a number, a (vertical, horizontal) pair, or a tensor of 1 or 2 numbers (learnable).
        rgb_scale: in the image's unit; a number, or a tensor of 1 or 3 numbers (learnable).

    Raises:
        TypeError: where the image is no floating tensor.
        ValueError: where it has another shape, or a scale another number of values.
    """
    check_image("image", image)
    if image.shape[1] != 3:
        raise ValueError(
            f"image must have 3 channels, got {image.shape[1]}: of others, write "
            "torch.cat([create_position_feats((H, W), yx_scale, B), image / scale], 1)"
        )
    b, _, height, width = image.shape
    image = image.to(accumulate_dtype(image.dtype))  # bfloat16 cannot tell pixel 257 from 256
    position = create_position_feats((height, width), yx_scale, b, image.device, image.dtype)
    return torch.cat([position, image / _per_channel("rgb_scale", rgb_scale, 3, image)], dim=1)


def _per_channel(name: str, scale: Scale, channels: int, like: Tensor) -> Tensor:
    numbers = torch.as_tensor(scale, device=like.device, dtype=like.dtype)
    if numbers.numel() not in (1, channels):
        raise ValueError(f"{name} must hold 1 number or {channels}, got {numbers.numel()}")
    return numbers.reshape(-1, 1, 1)


@dataclass(frozen=True)
class DenseFeatures:
    """The two feature maps of a dense CRF: position alone, and position with colour."""

    gaussian_sxy: float
    bilateral_sxy: float
    bilateral_srgb: float

    def of(self, image: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> [[B, 2, H, W], [B, 5, H, W]]."""
        b, _, height, width = image.shape
        wide = accumulate_dtype(image.dtype)  # as create_YXRGB: bfloat16 cannot tell pixel 257 from 256
        position = create_position_feats((height, width), self.gaussian_sxy, b, image.device, wide)
        return [position, create_YXRGB(image, self.bilateral_sxy, self.bilateral_srgb)]
