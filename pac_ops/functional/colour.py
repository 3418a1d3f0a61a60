"""The colour space in which images guide best."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pac_ops import library
from pac_ops.arguments import check_image
from pac_ops.backends import choose
from pac_ops.dtypes import accumulate_dtype

# Linear RGB -> XYZ of sRGB (IEC 61966-2-1), and its white, D65, by which XYZ is divided.
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_WHITE = (0.950456, 1.0, 1.088754)
_LEAST = 1e-6  # below it the derivative of a root is too large to be of use


def srgb_to_lab(
    image: Tensor, mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), bgr: bool = False
) -> Tensor:
    """CIE L*a*b* divided by 100 (CIE 15, with D65's white): a space in which equal distances look equally different.

    On the CPU, in float32 and where nothing is recorded or traced, by a compiled kernel, within 3e-6.

    Args:
        image: [B, 3, H, W], sRGB in 0..1, or [B, 1, H, W], of grey images; values beyond are clamped.
        mean: what `image * std + mean` brings to 0..1, a number for each channel or one for all.
        std: see `mean`.
        bgr: the channels are blue, green, red.

    Returns:
        [B, 3, H, W]: L*, a*, b*; of grey images, [B, 1, H, W], L* alone; float32 (float64 of a float64 image).

    Raises:
        TypeError: where the image is no floating tensor.
        ValueError: where it has neither 3 channels nor 1, or mean or std are not as many.
    """
    check_image("image", image)
    channels = image.shape[1]
    if channels not in (1, 3):
        raise ValueError(f"image must have 3 channels, or 1 of a grey image, got {list(image.shape)}")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"{name} must be {channels} numbers or one for all, got {len(values)}")
    mean, std = (tuple(values) * (channels // len(values)) for values in (mean, std))
    wide = image.to(accumulate_dtype(image.dtype))
    if library.may_split(wide) and hasattr(backend := choose.implementation(wide), "srgb_to_lab"):
        compiled: Tensor = backend.srgb_to_lab(wide, mean, std, bgr)
        return compiled
    offset, factor = (wide.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
    plain = (wide * factor + offset).clamp(0, 1)
    return _lab(plain.flip(1) if bgr and channels == 3 else plain)


def _lab(rgb: Tensor) -> Tensor:
    linear = _linear(rgb)
    if rgb.shape[1] == 1:
        return _root(linear) * 1.16 - 0.16
    matrix = rgb.new_tensor(_XYZ) / rgb.new_tensor(_WHITE).unsqueeze(1)
    roots = _root(torch.nn.functional.conv2d(linear, matrix[:, :, None, None]))
    if torch.compiler.is_exporting():  # what follows is linear, too
        differences = rgb.new_tensor(((0, 1.16, 0), (5, -5, 0), (0, 2, -2)))
        return torch.nn.functional.conv2d(roots, differences[:, :, None, None], rgb.new_tensor((-0.16, 0, 0)))
    x, y, z = roots.unbind(dim=1)
    return torch.stack([y * 1.16 - 0.16, (x - y) * 5, (y - z) * 2], dim=1)


def _linear(rgb: Tensor) -> Tensor:
    if not torch.compiler.is_exporting():
        return torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    # Without a comparison, which some runtimes do not have: what is below the bend, and what is above it.
    bend, at_bend = 0.04045, ((0.04045 + 0.055) / 1.055) ** 2.4
    above = _power((rgb.clamp_min(bend) + 0.055) * (1 / 1.055), 2.4)
    result: Tensor = rgb.clamp_max(bend) * (1 / 12.92) + (above - at_bend)
    return result


def _root(x: Tensor) -> Tensor:
    if not torch.compiler.is_exporting():
        return torch.where(x > 0.008856, x.clamp_min(_LEAST) ** (1 / 3), x * 7.787 + 16 / 116)
    bend = 0.008856
    above = _power(x.clamp_min(bend), 1 / 3)
    result: Tensor = x.clamp_max(bend) * 7.787 + (above + (16 / 116 - bend ** (1 / 3)))
    return result


def _power(x: Tensor, exponent: float) -> Tensor:
    """x^exponent of positive numbers, in a third of the time that runtimes take for a power."""
    power: Tensor = (x.log() * exponent).exp()
    return power
