"""The forward of every operator in plain PyTorch operations, for exporters: their files run without pac_ops.

Any size may be unknown when they are traced. Taps are strided views of one padded image, gathered in one tensor and
multiplied by the weight as a 1 x 1 convolution: kh * kw copies, and one product that every runtime does well.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops import area
from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Enlargement
from pac_ops.geometry import Window, pad, spread, taps
from pac_ops.library import window_of

Ints = Sequence[int]


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """A decomposition table for `torch.export.ExportedProgram.run_decompositions`: no operator of pac_ops is left.

    Results agree with the operators' up to rounding. There are no gradients: it is for inference.
    """
    names = (
        "area_average2d",
        "squared_distance2d",
        "gaussian_kernel2d",
        "pacconv2d",
        "pacconv_transpose2d",
        "pacpool2d",
        "resize_distance2d",
        "pacresize2d",
    )
    table = {getattr(torch.ops.pac_ops, name).default: globals()[f"_{name}"] for name in names}
    aten = torch.ops.aten  # operators that networks call: exporters take the example's sizes for granted in these
    table |= dict.fromkeys(
        (aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default), _adaptive_avg_pool2d
    )
    return table | {
        aten.adaptive_avg_pool1d.default: _adaptive_avg_pool1d,
        aten.upsample_nearest2d.vec: _upsample_nearest2d,
    }


def _area_average2d(image: Tensor, size: Ints, fit: bool) -> Tensor:
    wide = image.to(accumulate_dtype(image.dtype))
    down, across = area.matrices(image.shape[-2], image.shape[-1], (size[0], size[1]), fit, wide)
    return down @ (wide @ across.transpose(0, 1))


def _adaptive_avg_pool2d(input: Tensor, output_size: Ints) -> Tensor:
    if all(isinstance(n, int) and n == 1 for n in output_size):
        return input.mean(dim=(-2, -1), keepdim=True)
    return _area_average2d(input, output_size, False).to(input.dtype)


def _adaptive_avg_pool1d(input: Tensor, output_size: Ints) -> Tensor:
    return _adaptive_avg_pool2d(input[..., None, :], (1, output_size[0])).squeeze(-2)


def _upsample_nearest2d(input: Tensor, output_size: Ints | None, scale_factors: Sequence[float] | None) -> Any:
    """By PyTorch's indices: runtimes round the ratio of two sizes otherwise, and read a neighbouring pixel."""
    if output_size is None:
        return NotImplemented  # a factor is written as it is
    rows, columns = (_nearest(n, wanted, input) for n, wanted in zip(input.shape[-2:], output_size, strict=True))
    return input.index_select(2, rows).index_select(3, columns)


def _nearest(n: int, wanted: int, like: Tensor) -> Tensor:
    """The pixel that each of `wanted` is a copy of: floor(i n / wanted), in float32."""
    length, parts = (torch.full((), x, dtype=torch.float32, device=like.device) for x in (n, wanted))
    places = torch.arange(wanted, dtype=torch.float32, device=like.device) * (length / parts)
    return places.floor().clamp_max(n - 1).long()


def _squared_distance2d(guide: Tensor, *window: Ints) -> Tensor:
    sliding = window_of(*window)
    f_j = _seen(guide.to(accumulate_dtype(guide.dtype)), sliding)
    kh, kw = sliding.kernel_size
    f_i = f_j[kh // 2 * kw + kw // 2]
    return _as_kernel([_square_length(f_i - f) for f in f_j], sliding.kernel_size)


def _gaussian_kernel2d(guide: Tensor, *window: Ints) -> Tensor:
    return torch.exp(-0.5 * _squared_distance2d(guide, *window))


def _pacconv2d(input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    *sliding, groups = window
    return _convolved(input, kernel, weight, bias, window_of(weight.shape[2:], *sliding), groups)


def _pacconv_transpose2d(input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    *sliding, groups = window
    spaced = window_of(weight.shape[2:], *sliding)
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
    stepping = Window(spaced.kernel_size, dilation=spaced.dilation)
    return _convolved(spread(input, spaced, kernel.shape[4], kernel.shape[5]), kernel, turned, bias, stepping, groups)


def _pacpool2d(input: Tensor, kernel: Tensor, *sliding: Ints) -> Tensor:
    window = window_of(kernel.shape[2:4], *sliding)
    adapted: Tensor = torch.stack(_seen(input, window), dim=2) * kernel.flatten(2, 3)
    return adapted.sum(dim=2).to(input.dtype)


def _resize_distance2d(guide: Tensor, coarse: Tensor, *where: Any) -> Tensor:
    wide, n = accumulate_dtype(guide.dtype), where[-1]
    f_i = guide.to(wide)
    held = _neighbours(coarse.to(wide), Enlargement(*where), guide.shape[2], guide.shape[3])
    distances = [_square_length(f_i - g_j) for g_j in held]
    return _as_kernel(distances, (n, n))


def _pacresize2d(input: Tensor, kernel: Tensor, *where: Any) -> Tensor:
    wide = accumulate_dtype(input.dtype)
    held = _neighbours(input.to(wide), Enlargement(*where), kernel.shape[4], kernel.shape[5])
    weights = kernel.to(wide).flatten(2, 3).unbind(dim=2)
    total = held[0] * weights[0]
    for v_j, k in zip(held[1:], weights[1:], strict=True):
        total = total + v_j * k
    return total.to(input.dtype)


def _convolved(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    adapted = torch.stack(_seen(input, window), dim=2) * kernel.flatten(2, 3)  # [B, C, taps, Ho, Wo]
    filters = weight.flatten(1)[:, :, None, None]  # [O, C/groups * taps, 1, 1]
    return F.conv2d(adapted.flatten(1, 2).to(weight.dtype), filters, bias, groups=groups).to(input.dtype)


def _seen(x: Tensor, window: Window) -> list[Tensor]:
    """For each tap, the pixels it reads, [B, C, Ho, Wo], zero outside the image."""
    size = window.output_size(x.shape[2], x.shape[3])
    return [view for _, _, view in taps(pad(x, window), window, *size)]


def _square_length(x: Tensor) -> Tensor:
    """[B, G, H, W] -> [B, H, W]. Not `square`: exporters to ONNX would have to decompose the whole graph for it."""
    return (x * x).sum(dim=1)


def _as_kernel(per_tap: list[Tensor], size: tuple[int, int]) -> Tensor:
    """One [B, H, W] a tap -> [B, 1, kh, kw, H, W]."""
    together: Tensor = torch.stack(per_tap, dim=1).unflatten(1, size)
    return together.unsqueeze(1)


def _neighbours(x: Tensor, where: Enlargement, ho: int, wo: int) -> list[Tensor]:
    """For each neighbour of a footprint, its values at every fine pixel: [B, C, Ho, Wo]."""
    rows, columns = where.neighbours((x.shape[2], x.shape[3]), (ho, wo), x.device)
    down = [x.index_select(2, near) for near in rows.unbind(dim=1)]
    across = columns.unbind(dim=1)
    return [y.index_select(3, near) for y in down for near in across]
