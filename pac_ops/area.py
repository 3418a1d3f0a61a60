"""Area averages of images, which bring a guide to the size of the map it guides.

Under `torch.export` they are products with matrices, which leave sizes open: exporters take the example's sizes for
granted in `torch.nn.functional.adaptive_avg_pool2d`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from pac_ops import whole
from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Pair, any_open


def area_average2d(image: Tensor, size: Pair) -> Tensor:
    """The image at another size, each pixel the mean of the area that it covers: `F.interpolate(mode="area")`.

    Args:
        image: [B, C, H, W], any floating dtype.
        size: (h, w).

    Returns:
        [B, C, h, w], float32 (float64 for a float64 image): a mean of half-precision values is not rounded to one.
    """
    if has_size(image, size):
        return image.to(accumulate_dtype(image.dtype))
    return exported_average2d(image, size) if torch.compiler.is_exporting() else _averaged(image, size)


def exported_average2d(image: Tensor, size: Sequence[int]) -> Tensor:
    """`area_average2d` as exporters get it, also of [C, H, W]; all sizes may be symbolic.

    By a pool where its windows are known to fill the image, else by matrices.
    """
    if whole.is_kept(*image.shape[-2:], *size):
        return whole.averaged(image, (size[0], size[1]))
    sides = tuple(zip(image.shape[-2:], size, strict=True))
    if any_open(*image.shape[-2:], *size) or any(n % wanted for n, wanted in sides):
        return _by_matrices(image, size)
    return F.avg_pool2d(image.to(accumulate_dtype(image.dtype)), tuple(n // wanted for n, wanted in sides))


def fitted2d(image: Tensor, size: Pair, like: Tensor | None = None) -> Tensor:
    """`area_average2d`, or where the image is smaller along an axis, by some pixels, bilinear interpolation.

    Args:
        image: [B, C, H, W], any floating dtype.
        size: (h, w).
        like: an image whose size this may be a multiple of, by which exporters write it.

    Returns:
        [B, C, h, w], as `area_average2d`; the image itself where it has that size.
    """
    if has_size(image, size):
        return image
    if torch.compiler.is_exporting() and any_open(*image.shape[-2:], *size):
        if whole.is_kept(*image.shape[2:], *size):
            return whole.averaged(image, size, fit=True, like=like)
        return _by_matrices(image, size, fit=True)
    if image.shape[2] < size[0] or image.shape[3] < size[1]:
        wide = image.to(accumulate_dtype(image.dtype))
        # What F.interpolate calls: calls of itself are counted where enlargements are guided by hooks.
        resized: Tensor = torch.ops.aten.upsample_bilinear2d.vec(wide, tuple(size), False, None)
        return resized
    return area_average2d(image, size)


def has_size(image: Tensor, size: Pair) -> bool:
    """Whether an image has this height and width; under `torch.export`, whether it has for all dynamic sizes."""
    if torch.compiler.is_exporting():
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy: not for every user

        return all(statically_known_true(n == wanted) for n, wanted in zip(image.shape[2:], size, strict=True))
    return bool(image.shape[2:] == size)


def _by_matrices(image: Tensor, size: Sequence[int], *, fit: bool = False) -> Tensor:
    """`area_average2d`, or where `fit` `fitted2d`, as products with weights of rows, [h, H], and of columns, [w, W].

    All four sizes may be symbolic.
    """
    wide = image.to(accumulate_dtype(image.dtype))
    (height, width) = image.shape[-2:]
    sides = tuple(zip((height, width), size, strict=True))
    with constant_unless_open(*image.shape[-2:], *size):
        weights = [_averages(n, wanted, wide) for n, wanted in sides]
    if fit:
        # 1 where the image is smaller along an axis, else 0; without a comparison, which some runtimes do not have.
        larger, other = ((_number(wanted, wide) - _number(n, wide)).clamp(0, 1).to(wide.dtype) for n, wanted in sides)
        larger = torch.maximum(larger, other)
        tents = [_tents(n, wanted, wide) for n, wanted in sides]
        weights = [tent * larger + mean * (1 - larger) for tent, mean in zip(tents, weights, strict=True)]
    return _product(wide, *weights)


def exported_aligned2d(image: Tensor, size: Pair) -> Tensor:
    """mode="bilinear" with align_corners, as exporters get it: of a larger image too; all sizes may be symbolic."""
    wide = image.to(accumulate_dtype(image.dtype))
    with constant_unless_open(*image.shape[-2:], *size):
        down, across = (
            _tents(n, wanted, wide, align_corners=True) for n, wanted in zip(image.shape[-2:], size, strict=True)
        )
    return _product(wide, down, across)


def constant_unless_open(*sizes: int) -> AbstractContextManager[object]:
    """Has exporters make constants of what is computed in it of these sizes, if none is open."""
    return nullcontext() if any_open(*sizes) else _disable_current_modes()


def _product(image: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return down @ (image @ across.transpose(0, 1))


def _averages(n: int, wanted: int, like: Tensor) -> Tensor:
    """Row i is 1 over the length of bin i, from floor(i n / wanted) to ceil((i + 1) n / wanted), inside it."""
    starts = torch.arange(wanted, device=like.device).unsqueeze(1) * n  # in parts of a pixel, `wanted` to one
    ahead = starts - torch.arange(n, device=like.device) * wanted  # how far pixel p starts before bin i
    # Whole numbers, so without a comparison: each side of the bin, 1 inside of it.
    inside = ((wanted - ahead).clamp(0, 1) * (n + ahead).clamp(0, 1)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def _tents(n: int, wanted: int, like: Tensor, *, align_corners: bool = False) -> Tensor:
    """Row i holds the two weights of bilinear interpolation."""
    pixel = torch.arange(wanted, device=like.device, dtype=torch.float64)
    place = pixel * (n - 1) / max(wanted - 1, 1) if align_corners else (pixel + 0.5) * (n / wanted) - 0.5
    place = place.clamp(0, n - 1).unsqueeze(1)
    pixels = torch.arange(n, device=like.device, dtype=torch.float64)
    return ((place - pixels).abs() * -1 + 1).relu().to(like.dtype)


def _number(n: int, like: Tensor) -> Tensor:
    """A size as a tensor, so that comparing it is an operation of the graph."""
    return torch.full((), n, dtype=torch.int64, device=like.device)


def _averaged(image: Tensor, size: Sequence[int]) -> Tensor:
    height, width = size
    wide = accumulate_dtype(image.dtype)
    return F.adaptive_avg_pool2d(image if image.dtype == wide else image.to(wide), (height, width))
