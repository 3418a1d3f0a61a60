"""What pixel-adaptive convolution generalises, as small functions over the same operators."""

import math
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops import library
from pac_ops.arguments import IntOrPair, check_devices, check_fits, check_image, make_window
from pac_ops.dtypes import accumulate_dtype
from pac_ops.functional.convolution import pacpool2d
from pac_ops.functional.kernel import packernel2d
from pac_ops.geometry import Pair

FloatOrPair = float | tuple[float, float]
_Tap = tuple[Tensor, Tensor]  # along an axis: which coarse pixel each fine one sees, and its log weight
PIXELS_OF_A_BAND = 2**16  # of an enlargement, where nothing is recorded: what is held of them stays in the cache
_BORDERS = ("reflect", "replicate", "circular", "constant")


def bilateral_filter(
    input: Tensor,
    kernel_size: IntOrPair,
    sigma_color: float | Tensor,
    sigma_space: FloatOrPair,
    border_type: str = "reflect",
) -> Tensor:
    """Smooth an image where its colours are alike (Tomasi and Manduchi, ICCV 1998).

    See `joint_bilateral_filter`, here with the image as its own guide.
    """
    return joint_bilateral_filter(input, input, kernel_size, sigma_color, sigma_space, border_type)


def joint_bilateral_filter(
    input: Tensor,
    guide: Tensor,
    kernel_size: IntOrPair,
    sigma_color: float | Tensor,
    sigma_space: FloatOrPair,
    border_type: str = "reflect",
) -> Tensor:
    """Smooth an image where a guide is alike (Petschnigg et al., SIGGRAPH 2004).

    v'_i = sum_j w_ij v_j / sum_j w_ij with
    w_ij = exp(-||f_i - f_j||^2 / (2 sigma_color^2)) exp(-|i - j|^2 / (2 sigma_space^2)): normalised PAC pooling with
    position as a part of the guide. Distances between colours are Euclidean.

    Args:
        input: v, [B, C, H, W], any floating dtype.
        guide: f, [B, G, H, W].
        kernel_size: the window, odd in both directions.
        sigma_color: in the guide's unit; a number, or a tensor with one number or B of them.
        sigma_space: in pixels, a number or a (vertical, horizontal) pair.
        border_type: what lies outside the image: "reflect", "replicate", "circular" or "constant" (zeros).

    Returns:
        [B, C, H, W], in the input's dtype.
    """
    check_image("input", input)
    _check_guide(guide, input, input.shape[2], input.shape[3])
    window = make_window(kernel_size, 1, "same", 1)
    if border_type not in _BORDERS:
        raise ValueError(f"border_type must be one of {', '.join(_BORDERS)}, got {border_type!r}")
    (rows, columns), shape = window.padding, guide.shape
    less = {"reflect": 1, "circular": 0}.get(border_type)  # what the border repeats must be in the image
    if less is not None and (rows > shape[2] - less or columns > shape[3] - less):
        raise ValueError(
            f"kernel_size must reach at most {shape[2] - less} rows and {shape[3] - less} columns to each side with "
            f'border_type "{border_type}" on a {shape[2]} x {shape[3]} image, got {window.kernel_size}'
        )
    around = (columns, columns, rows, rows)
    seen, colours = (F.pad(x, around, mode=border_type) for x in (input, _scaled(guide, sigma_color)))
    kernel, _ = packernel2d(colours, kernel_size=window.kernel_size)
    kernel = kernel * _gaussian_window(window.kernel_size, _sigmas(sigma_space), kernel)
    kernel = kernel / kernel.sum(dim=(2, 3), keepdim=True)
    return pacpool2d(seen, kernel, window.kernel_size, stride=1)


def joint_bilateral_upsample(
    input: Tensor,
    guide: Tensor,
    sigma_color: float | Tensor,
    sigma_space: FloatOrPair = 1.0,
    kernel_size: IntOrPair = 5,
) -> Tensor:
    """Enlarge a coarse map to the size of a guide, along the guide's edges (Kopf et al., SIGGRAPH 2007).

    out_i = sum_j w_ij K(f_i, g_j) v_j / sum_j w_ij K(f_i, g_j) over the coarse pixels around fine pixel i, with K the
    gaussian kernel of f / sigma_color, f the guide, g its area average at the coarse size, and w a Gaussian of
    the distance in coarse pixels (pixel centres as in `interpolate(align_corners=False)`). Any factor, whole or not,
    different in the two directions. Where every K of a window underflows, w alone decides. Where nothing is recorded
    for gradients, rows are made a few at a time, and memory beyond input, guide and output does not grow with them.

    Args:
        input: v, [B, C, h, w], any floating dtype.
        guide: f, [B, G, H, W], at least as large.
        sigma_color: in the guide's unit; a number, or a tensor with one number or B of them.
        sigma_space: in coarse pixels, a number or a (vertical, horizontal) pair.
        kernel_size: the window, in coarse pixels, odd in both directions.

    Returns:
        [B, C, H, W], in the input's dtype.
    """
    check_image("input", input)
    check_image("guide", guide)
    coarse, fine = (input.shape[2], input.shape[3]), (guide.shape[2], guide.shape[3])
    if fine[0] < coarse[0] or fine[1] < coarse[1]:
        raise ValueError(f"guide must be at least as large as the input, {list(coarse)}, got {list(fine)}")
    if min(coarse) == 0:
        raise ValueError(f"input must have a pixel to enlarge, got {list(input.shape)}")
    _check_guide(guide, input, *fine)
    window, sigmas = make_window(kernel_size, 1, "same", 1), _sigmas(sigma_space)
    v = input.to(torch.promote_types(accumulate_dtype(input.dtype), accumulate_dtype(guide.dtype)))
    f = _scaled(guide.to(v.dtype), sigma_color)
    g = F.interpolate(f, size=coarse, mode="area")
    rows, columns = (
        _coarse_taps(k, s, c, n, f) for k, s, c, n in zip(window.kernel_size, sigmas, coarse, fine, strict=True)
    )
    if not library.may_split(input, guide, sigma_color):
        return _upsampled(v, f, g, rows, columns).to(input.dtype)
    out = input.new_empty(*input.shape[:2], *fine)
    high = max(1, PIXELS_OF_A_BAND // max(1, f.shape[0] * fine[1]))
    for first in range(0, fine[0], high):
        band = slice(first, min(first + high, fine[0]))
        seen = [(index[band], weight[band]) for index, weight in rows]
        above, below = int(seen[0][0][0]), int(seen[-1][0][-1]) + 1  # of the coarse rows
        near = [(index - above, weight) for index, weight in seen]
        out[:, :, band] = _upsampled(v[:, :, above:below], f[:, :, band], g[:, :, above:below], near, columns)
    return out


def detail_preserving_pool2d(
    input: Tensor,
    kernel_size: IntOrPair = 3,
    stride: IntOrPair = 2,
    padding: IntOrPair = 1,
    alpha: float | Tensor = 0.0,
    lambda_: float | Tensor = 1.0,
    asymmetric: bool = False,
    smooth_kernel_type: str = "gaussian",
) -> Tensor:
    """Pool with more weight on what stands out (Saeedan et al., CVPR 2018).

    v'_i = sum_j w_ij v_j / sum_j w_ij, w_ij = alpha + (d_ij^2 + 1e-4)^(lambda / 2), with d_ij = v_j less the smoothed
    input at i, clipped below at 0 where asymmetric; each channel by itself. lambda = 0 is average pooling.

    Args:
        input: v, [B, C, H, W], any floating dtype.
        kernel_size: the window, odd in both directions.
        stride: as in `torch.nn.AvgPool2d`.
        padding: as in `torch.nn.AvgPool2d`; pixels outside the image do not count.
        alpha: a number, or a tensor with one number or C of them (learnable).
        lambda_: likewise.
        asymmetric: only what is brighter than its surroundings stands out.
        smooth_kernel_type: as in `packernel2d`.

    Returns:
        [B, C, Ho, Wo], in the input's dtype.
    """
    check_image("input", input)
    c = input.shape[1]
    kernel, _ = packernel2d(
        input,
        None,
        kernel_size,
        stride,
        padding,
        kernel_type="inv_0_1_asym" if asymmetric else "inv_0_1",
        smooth_kernel_type=smooth_kernel_type,
        inv_alpha=_numbers("alpha", alpha, c, input, "input"),
        inv_lambda=_numbers("lambda_", lambda_, c, input, "input"),
        channel_wise=True,
        normalize_kernel=True,
    )
    return pacpool2d(input, kernel, kernel_size, stride, padding)


def dynamic_filter2d(
    input: Tensor,
    filters: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = "same",
    dilation: IntOrPair = 1,
) -> Tensor:
    """Filter every pixel with its own filter, as a network predicted it (Jia et al., NeurIPS 2016).

    v'_i = sum_j F_i[p_j - p_i] v_j: PAC pooling with K given, in dynamic filter networks' local filtering.

    Args:
        input: v, [B, C, H, W], any floating dtype.
        filters: [B, kh * kw, Ho, Wo], one filter a pixel, for every channel; or [B, C * kh * kw, Ho, Wo], one a pixel
            and channel, channels first (`unfold`'s order). Taps go row by row. They are used as they are.
        kernel_size: the window, odd in both directions.
        stride: as in `torch.nn.Conv2d`.
        padding: as in `torch.nn.Conv2d`, "same" and "valid" included.
        dilation: as in `torch.nn.Conv2d`.

    Returns:
        [B, C, Ho, Wo], in the input's dtype.
    """
    check_image("input", input)
    check_image("filters", filters)
    check_devices(input.device, {"filters": filters})
    window = make_window(kernel_size, stride, padding, dilation)
    taps, (b, c) = math.prod(window.kernel_size), input.shape[:2]
    size = check_fits(window, input.shape[2], input.shape[3])
    shape = list(filters.shape)
    if shape not in ([b, taps, *size], [b, c * taps, *size]):
        raise ValueError(
            f"filters must be [B, kh * kw, Ho, Wo] = {[b, taps, *size]} or [B, C * kh * kw, Ho, Wo] = "
            f"{[b, c * taps, *size]}, got {shape}"
        )
    kernel = filters.reshape(b, shape[1] // taps, *window.kernel_size, *size)
    return pacpool2d(input, kernel, window.kernel_size, window.stride, window.padding, window.dilation)


# --- parts ------------------------------------------------------------------------------------------------


def _check_guide(guide: Tensor, input: Tensor, height: int, width: int) -> None:
    check_image("guide", guide)
    check_devices(input.device, {"guide": guide})
    if guide.shape[0] != input.shape[0] or guide.shape[2] != height or guide.shape[3] != width:
        raise ValueError(
            f"guide must be [B, G, H, W] = [{input.shape[0]}, G, {height}, {width}], got {list(guide.shape)}"
        )


def _numbers(name: str, x: float | Tensor, count: int, like: Tensor, owner: str) -> Tensor:
    """One number or `count` of them, as wide as sums over `like` (whose argument is `owner`): [1 or count]."""
    wide = accumulate_dtype(like.dtype)
    if isinstance(x, (int, float)):
        return torch.full((1,), x, dtype=wide, device=like.device)
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a number or a tensor, got {type(x).__name__}")
    check_devices(like.device, {name: x}, owner)
    if x.numel() not in (1, count):
        raise ValueError(f"{name} must hold 1 number or {count}, got {list(x.shape)}")
    return x.to(wide).reshape(-1)


def _scaled(guide: Tensor, sigma: float | Tensor) -> Tensor:
    """The guide over sigma, as wide as distances are taken."""
    # The values of a tensor are not looked at: that would wait for the device and break a compiled graph.
    if isinstance(sigma, (int, float)) and not sigma > 0:
        raise ValueError(f"sigma_color must be positive, got {sigma!r}")
    sigmas = _numbers("sigma_color", sigma, guide.shape[0], guide, "guide")
    return guide.to(sigmas.dtype) / sigmas[:, None, None, None]


def _sigmas(sigma_space: FloatOrPair) -> tuple[float, float]:
    both = tuple(sigma_space) if isinstance(sigma_space, (tuple, list)) else (sigma_space, sigma_space)
    if len(both) != 2 or not all(isinstance(s, (int, float)) and s > 0 for s in both):
        raise ValueError(f"sigma_space must be a positive number or a pair of them, got {sigma_space!r}")
    return both[0], both[1]


def _gaussian_window(kernel_size: Pair, sigmas: tuple[float, float], like: Tensor) -> Tensor:
    """exp(-|i - j|^2 / (2 sigma^2)) of every tap: [1, 1, kh, kw, 1, 1]."""
    sides = [
        torch.exp(-0.5 * ((torch.arange(k, device=like.device, dtype=like.dtype) - k // 2) / s) ** 2)
        for k, s in zip(kernel_size, sigmas, strict=True)
    ]
    return torch.outer(sides[0], sides[1])[None, None, :, :, None, None]


def _coarse_taps(kernel_size: int, sigma: float, coarse: int, fine: int, like: Tensor) -> list[_Tap]:
    """Along one axis and for each tap: which coarse pixel each fine one sees, and its log weight (-inf: none)."""
    position = (torch.arange(fine, device=like.device, dtype=like.dtype) + 0.5) * (coarse / fine) - 0.5
    nearest = (position + 0.5).floor().long()
    coarse_taps = []
    for tap in range(kernel_size):
        index = nearest + (tap - kernel_size // 2)
        weight = -0.5 * ((index - position) / sigma) ** 2
        weight = weight.masked_fill((index < 0) | (index >= coarse), -math.inf)
        coarse_taps.append((index.clamp(0, coarse - 1), weight))
    return coarse_taps


def _upsampled(v: Tensor, f: Tensor, g: Tensor, rows: list[_Tap], columns: list[_Tap]) -> Tensor:
    """See `joint_bilateral_upsample`. What the taps see is spread along a row first, while there are few rows."""
    held = [(v.index_select(3, across), g.index_select(3, across), weight) for across, weight in columns]
    exponents = [
        row[1][:, None] + weight - 0.5 * (f - g_j.index_select(2, row[0])).square().sum(dim=1, keepdim=True)
        for row in rows
        for _, g_j, weight in held
    ]
    # The same quotient for any shift of the exponents; with their largest it cannot be 0 / 0.
    shift = reduce(torch.maximum, (x.detach() for x in exponents))
    total, out, remaining = torch.zeros_like(shift), v.new_zeros((*v.shape[:2], *f.shape[2:])), iter(exponents)
    for down, _ in rows:
        for v_j, _, _ in held:
            weight = torch.exp(next(remaining) - shift)
            total = total + weight
            out = torch.addcmul(out, weight, v_j.index_select(2, down))
    return out / total
