"""What swapped layers compute, in the plainest PyTorch: written from the equations, and in float64 throughout."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# As they are before anybody puts something in their place.
_interpolate, _conv_transpose2d, _avg_pool2d = F.interpolate, F.conv_transpose2d, F.avg_pool2d


def pair(x: Any) -> tuple[Any, Any]:
    """A number twice, or two of them."""
    return tuple(x) if isinstance(x, (tuple, list, torch.Size)) else (x, x)


def windows(x: Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any, size: tuple[int, int]) -> Tensor:
    """What every window sees, zeros around the image: [B, C, H, W] -> [B, C, taps, Ho * Wo]."""
    (kh, kw), (py, px), (sy, sx), (dy, dx) = pair(kernel), pair(padding), pair(stride), pair(dilation)
    bottom = max(0, (size[0] - 1) * sy + dy * (kh - 1) + 1 - x.shape[2] - py)  # as much as the last window needs
    right = max(0, (size[1] - 1) * sx + dx * (kw - 1) + 1 - x.shape[3] - px)
    padded = torch.constant_pad_nd(x, [px, right, py, bottom])
    rows = torch.arange(size[0])[:, None] * sy + torch.arange(kh) * dy  # [Ho, kh]
    columns = torch.arange(size[1])[:, None] * sx + torch.arange(kw) * dx
    seen = padded[:, :, rows.T[:, None, :, None], columns.T[None, :, None, :]]  # [B, C, kh, kw, Ho, Wo]
    return seen.flatten(4).flatten(2, 3)


def kernel_of(squared: Tensor, name: str) -> Tensor:
    """K of squared distances, scaled: 1 where that is 0."""
    if name == "gaussian":
        return torch.exp(-0.5 * squared)
    _, alpha, power, *_ = name.split("_")
    return (float(alpha) + (squared + 1e-4) ** (float(power) / 2)) / (float(alpha) + 1e-4 ** (float(power) / 2))


def window_kernel(
    guides: Sequence[Tensor], scale: Any, name: str, kernel: Any, stride: Any, padding: Any, dilation: Any, size: Any
) -> Tensor:
    """K between the centre of each window and its taps: guides [B, G, H, W] -> [B, 1, taps, Ho * Wo]."""
    total: Any = 0
    for guide in guides:
        f_j = windows(guide, kernel, stride, padding, dilation, size)
        f_i = f_j[:, :, f_j.shape[2] // 2 : f_j.shape[2] // 2 + 1]
        total = total + (f_j - f_i).square().sum(1, keepdim=True)
    return kernel_of(total * scale**2, name)


def convolution(
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    kernel: Any,
) -> Tensor:
    """sum_j K(f_i, f_j) W[p_i - p_j] v_j + b, where `kernel(size)` gives K."""
    dilation, (kh, kw) = pair(dilation), weight.shape[2:]
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, (kh, kw), strict=True))
    padding = (0, 0) if padding == "valid" else pair(padding)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, (kh, kw), strict=True)]
    size = tuple((v.shape[2 + a] + 2 * padding[a] - reach[a]) // pair(stride)[a] + 1 for a in (0, 1))
    seen = windows(v, (kh, kw), stride, padding, dilation, size) * kernel((kh, kw), stride, padding, dilation, size)
    parts = []
    for x, w in zip(seen.chunk(groups, 1), weight.chunk(groups, 0), strict=True):
        parts.append(torch.einsum("bctp,oct->bop", x, w.flatten(2)))
    out = torch.cat(parts, 1).unflatten(2, size)
    return out if bias is None else out + bias[:, None, None]


def transposed(
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
    kernel: Any,
) -> Tensor:
    """Zeros between the pixels of v, then the convolution with the filter turned round; K is of the output's size."""
    stride, padding, dilation, more = pair(stride), pair(padding), pair(dilation), pair(output_padding)
    k = weight.shape[2:]
    spaced = v.new_zeros(*v.shape[:2], *((n - 1) * s + 1 for n, s in zip(v.shape[2:], stride, strict=True)))
    spaced[:, :, :: stride[0], :: stride[1]] = v
    margin = [d * (n - 1) - p for d, n, p in zip(dilation, k, padding, strict=True)]
    spaced = torch.constant_pad_nd(spaced, [margin[1], margin[1] + more[1], margin[0], margin[0] + more[0]])
    turned = torch.cat([w.transpose(0, 1) for w in weight.chunk(groups, 0)]).flip(2, 3)
    centred = [d * (n // 2) for d, n in zip(dilation, k, strict=True)]  # of the window on the output

    def on_output(size: Any, _stride: Any, _padding: Any, _dilation: Any, out: Any) -> Tensor:
        return kernel(size, 1, centred, dilation, out)

    return convolution(spaced, turned, bias, 1, 0, dilation, groups, on_output)


def average(
    v: Tensor,
    size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: Any,
    kernel: Any,
) -> Tensor:
    """The sum that an average pool makes, each value times K, over what it always divides by."""
    stride = size if stride is None else stride
    options = (size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    ones = torch.ones_like(v[:1, :1])
    mean = _avg_pool2d(ones, *options)
    out = tuple(mean.shape[2:])
    count = windows(ones, size, stride, padding, 1, out).sum(2).unflatten(2, out)
    sums = windows(v, size, stride, padding, 1, out) * kernel(pair(size), stride, padding, 1, out)
    return sums.sum(2).unflatten(2, out) * (mean / count)


# --- enlargements ---------------------------------------------------------------------------------------------


def resized(guide: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """A guide at a size."""
    if tuple(guide.shape[2:]) == tuple(size):
        return guide
    if how == "area":
        return F.adaptive_avg_pool2d(guide, size)
    return _interpolate(guide, size=size, mode=how, **({"align_corners": False} if how == "bilinear" else {}))


def enlarged(
    v: Tensor, guides: Sequence[Tensor], scale: Any, footprint: int, options: dict[str, Any]
) -> Tensor | None:
    """sum_j w_ij K(f_i, g_j) v_j / sum_j w_ij K(f_i, g_j) over all coarse pixels; None where nothing is enlarged.

    w is what `F.interpolate` itself makes of an image with a single 1 in it. With a wider footprint it is a tent, and
    the sum is added to what `F.interpolate` makes, less that of K = 1. Values of maps of few channels stay in the range
    of the pixels around.
    """
    coarse = tuple(v.shape[2:])
    one = v.new_zeros(1, 1, *coarse)
    fine = tuple(_interpolate(one, **options).shape[2:])
    if fine == coarse or fine[0] < coarse[0] or fine[1] < coarse[1]:
        return None
    plain = _impulses(v, coarse, options)  # [hw, HW]
    weight = plain if footprint == 2 else _tents(v, coarse, fine, options, 2)
    f = [_fine(guide, fine) for guide in guides]
    squared: Any = 0
    for guide in f:
        g = F.adaptive_avg_pool2d(guide, coarse).flatten(2)
        squared = squared + (g[:, :, :, None] - guide.flatten(2)[:, :, None, :]).square().sum(1)  # [B, hw, HW]
    logits = torch.where(weight > 0, weight, 1).log() - 0.5 * scale**2 * squared
    share = logits.masked_fill(weight == 0, float("-inf")).softmax(dim=1)
    if footprint == 2:
        return (v.flatten(2) @ share).unflatten(2, fine)
    out = v.flatten(2) @ (share + plain - weight / weight.sum(dim=0))
    if v.shape[1] <= 3:
        around = _tents(v, coarse, fine, options, 1, edge=True) > 0
        pixels = v.flatten(2).unsqueeze(3)
        least = torch.where(around, pixels, float("inf")).amin(dim=2)
        most = torch.where(around, pixels, float("-inf")).amax(dim=2)
        out = torch.minimum(torch.maximum(out, least), most)
    return out.unflatten(2, fine)


def _fine(guide: Tensor, fine: tuple[int, int]) -> Tensor:
    too_small = any(n < m for n, m in zip(guide.shape[2:], fine, strict=True))
    return resized(guide, fine, "bilinear" if too_small else "area")


def _impulses(v: Tensor, coarse: tuple[int, int], options: dict[str, Any]) -> Tensor:
    count = coarse[0] * coarse[1]
    ones = torch.eye(count, dtype=v.dtype).view(count, 1, *coarse)
    found = _interpolate(ones, **options).flatten(1)
    return torch.where(found > 1e-12, found, 0)


def _tents(
    v: Tensor,
    coarse: tuple[int, int],
    fine: tuple[int, int],
    options: dict[str, Any],
    reach: int,
    *,
    edge: bool = False,
) -> Tensor:
    """Pixels at less than `reach` under a tent; with `edge` also the next one, of a place that is a pixel's own."""
    factor = None if options.get("recompute_scale_factor") else options.get("scale_factor")
    axes = []
    for axis in (0, 1):
        n, m = coarse[axis], fine[axis]
        pixel = torch.arange(m, dtype=v.dtype)
        if options.get("align_corners"):
            place = pixel * (n - 1) / max(m - 1, 1)
        else:
            step = n / m if factor is None else 1 / float(pair(factor)[axis])
            place = (pixel + 0.5) * step - 0.5
        place = place.clamp(0, n - 1)
        pixels = torch.arange(n, dtype=v.dtype)[:, None]
        tent = (1 - (place - pixels).abs() / reach).clamp_min(0)
        axes.append(torch.maximum(tent, (pixels == place.floor() + 1).to(tent.dtype)) if edge else tent)  # [n, m]
    return torch.einsum("iy,jx->ijyx", *axes).flatten(0, 1).flatten(1)


def bilinear_transposed(v: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> tuple[Any, Any]:
    """The options of the enlargement that it is, and what the result is multiplied by: less than 1 at the edge."""
    factors = tuple(float(s) for s in pair(stride))
    mass = _conv_transpose2d(v.new_ones(1, 1, *v.shape[2:]), weight[:1, :1], None, stride, padding)
    return {"scale_factor": factors, "mode": "bilinear"}, mass
