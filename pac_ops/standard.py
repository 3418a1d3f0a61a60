"""The forward of every operator in plain PyTorch operations, for exporters: their files run without pac_ops.

Any size may be unknown when they are traced. Taps of windows are slices with constant bounds, side by side as
channels. Distances are sums over these, and a convolution is a product with 1 x 1 filters, which every runtime does
well. K is [B, C, kh, kw, H, W] only as a view. The rest is the oracle's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops import area
from pac_ops.backends import reference
from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Enlargement, gathered
from pac_ops.geometry import Window, pad, size_of, spread
from pac_ops.library.operators import OPERATORS, OR_PLAIN, Operator, window_of

Ints = Sequence[int]


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """A decomposition table for `torch.export.ExportedProgram.run_decompositions`: no operator of pac_ops is left.

    Results agree with the operators' up to rounding. There are no gradients: it is for inference.
    """
    table: dict[Any, Callable[..., Tensor]] = {}
    for operator in OPERATORS:
        table[getattr(torch.ops.pac_ops, operator.name).default] = partial(_computed, operator)
    for name, written in _WRITTEN.items():
        table[getattr(torch.ops.pac_ops, name).default] = written
        if name.startswith("pacconv"):
            table[getattr(torch.ops.pac_ops, f"{name}{OR_PLAIN}").default] = partial(_whether_open_or_not, written)
    aten = torch.ops.aten  # operators that networks call: exporters take the example's sizes for granted in these
    table |= dict.fromkeys(
        (aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default), _adaptive_avg_pool2d
    )
    return table | {
        aten.adaptive_avg_pool1d.default: _adaptive_avg_pool1d,
        aten.upsample_nearest2d.vec: _upsample_nearest2d,
    }


def _computed(operator: Operator, *arguments: Any) -> Tensor:
    """The result of an operator, by the oracle."""
    result: Tensor = getattr(reference, operator.name)(*operator.for_backend(*arguments))
    return result


def _squared_distance2d(guide: Tensor, *window: Ints) -> Tensor:
    sliding = window_of(*window)
    kh, kw = sliding.kernel_size
    taps = _taps(guide.to(accumulate_dtype(guide.dtype)), sliding)  # [B, taps, G, Ho, Wo]
    apart = taps - taps.narrow(1, kh * kw // 2, 1)
    lengths = (apart * apart).sum(dim=2)
    distances: Tensor = lengths.unflatten(1, (1, kh, kw))
    return distances


def _gaussian_kernel2d(guide: Tensor, *window: Ints) -> Tensor:
    return torch.exp(-0.5 * _squared_distance2d(guide, *window))


def _whether_open_or_not(written: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """An operator that may be PyTorch's own where K is 1: the same up to rounding."""
    *tensors, _, stride, padding, dilation, groups = arguments
    return written(*tensors, stride, padding, dilation, groups)


def _pacconv2d(input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    *sliding, groups = window
    return _convolved(input, kernel, weight, bias, window_of(weight.shape[2:], *sliding), groups)


def _pacconv_transpose2d(input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    *sliding, groups = window
    spaced = window_of(weight.shape[2:], *sliding)
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
    stepping = Window(spaced.kernel_size, dilation=spaced.dilation)
    return _convolved(spread(input, spaced, kernel.shape[4], kernel.shape[5]), kernel, turned, bias, stepping, groups)


def _convolved(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    per_tap = kernel.flatten(1, 3).unsqueeze(2)  # [B, taps, 1, Ho, Wo]
    adapted = (_taps(input, window) * per_tap).to(weight.dtype)  # [B, taps, C, Ho, Wo]
    if groups > 1:
        adapted = adapted.transpose(1, 2)
        filters = weight.flatten(1)[:, :, None, None]  # [O, C/groups taps, 1, 1]
    else:
        filters = weight.flatten(2).transpose(1, 2).flatten(1)[:, :, None, None]  # [O, taps C, 1, 1]
    return F.conv2d(adapted.flatten(1, 2), filters, bias, groups=groups).to(input.dtype)


def _resize_distance2d(guide: Tensor, coarse: Tensor, *where: Any) -> Tensor:
    enlargement, wide = Enlargement(*where), accumulate_dtype(guide.dtype)
    located = enlargement.located(size_of(coarse), size_of(guide), guide.device)
    lengths = (guide.to(wide).unsqueeze(2) - gathered(coarse.to(wide), located.indices())).square().sum(dim=1)
    distances: Tensor = lengths.unflatten(1, (1, enlargement.footprint, enlargement.footprint))
    return distances


def _pacresize2d(input: Tensor, kernel: Tensor, *where: Any) -> Tensor:
    wide = accumulate_dtype(input.dtype)
    located = Enlargement(*where).located(size_of(input), (kernel.shape[4], kernel.shape[5]), input.device)
    near, weights = gathered(input.to(wide), located.indices()), kernel.to(wide).flatten(1, 3)
    return (near * weights.unsqueeze(1)).sum(dim=2).to(input.dtype)


def _taps(x: Tensor, window: Window) -> Tensor:
    """The pixels that all taps read, zero outside the image: [B, C, H, W] -> [B, kh kw, C, Ho, Wo].

    Slices end a constant number of pixels before the end, so that no size is computed: what the last window leaves is
    less than a step.
    """
    padded, (kh, kw), (sy, sx), (dy, dx) = pad(x, window), window.kernel_size, window.stride, window.dilation
    part = torch.ops.aten.slice.Tensor  # indexing slices all axes, and exporters keep that
    rows = [part(padded, 2, i * dy, _before_end((kh - 1 - i) * dy), sy) for i in range(kh)]
    views = [part(row, 3, j * dx, _before_end((kw - 1 - j) * dx), sx) for row in rows for j in range(kw)]
    together: Tensor = torch.cat(views, dim=1).unflatten(1, (kh * kw, x.shape[1]))
    return together


def _before_end(pixels: int) -> int | None:
    return -pixels if pixels else None


_WRITTEN: dict[str, Callable[..., Tensor]] = {
    "squared_distance2d": _squared_distance2d,
    "gaussian_kernel2d": _gaussian_kernel2d,
    "resize_distance2d": _resize_distance2d,
    "pacresize2d": _pacresize2d,
    "pacconv2d": _pacconv2d,
    "pacconv_transpose2d": _pacconv_transpose2d,
}


def _adaptive_avg_pool2d(input: Tensor, output_size: Ints) -> Tensor:
    if all(isinstance(n, int) and n == 1 for n in output_size):
        return input.mean(dim=(-2, -1), keepdim=True)
    return area.exported_average2d(input, output_size).to(input.dtype)


def _adaptive_avg_pool1d(input: Tensor, output_size: Ints) -> Tensor:
    return _adaptive_avg_pool2d(input[..., None, :], (1, output_size[0])).squeeze(-2)


def _upsample_nearest2d(input: Tensor, output_size: Ints | None, scale_factors: Sequence[float] | None) -> Any:
    """By PyTorch's indices: runtimes round the ratio of two sizes otherwise, and read a neighbouring pixel."""
    if output_size is None:
        return NotImplemented  # a factor is written as it is
    with area.constant_unless_open(*input.shape[-2:], *output_size):
        rows, columns = (_nearest(n, wanted, input) for n, wanted in zip(input.shape[-2:], output_size, strict=True))
    return input.index_select(2, rows).index_select(3, columns)


def _nearest(n: int, wanted: int, like: Tensor) -> Tensor:
    """The pixel that each of `wanted` is a copy of: floor(i n / wanted), in float32."""
    length, parts = (torch.full((), x, dtype=torch.float32, device=like.device) for x in (n, wanted))
    places = torch.arange(wanted, dtype=torch.float32, device=like.device) * (length / parts)
    return places.floor().clamp_max(n - 1).long()
