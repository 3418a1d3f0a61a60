"""From squared distances to the adapting kernel: kernel functions, smoothing of the guide, masks, normalisation."""

import re
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Window, all_taps, pad, spread, taps

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_INVERSE = re.compile(rf"inv_({_NUMBER})_({_NUMBER})(_asym)?(_fixed)?")
_SMOOTH = re.compile(r"(average|full)_(\d+)")


class KernelType(NamedTuple):
    """A kernel function, parsed from its name."""

    inverse: bool = False  # alpha + (d + 1e-4)^(lambda / 2), else the gaussian exp(-d / 2)
    alpha: float = 0.0
    lambda_: float = 0.0
    asymmetric: bool = False  # f_j - f_i clipped below at 0 before it is squared
    fixed: bool = False  # alpha and lambda are not learnable


class SmoothType(NamedTuple):
    """The smoothing of the guide at the window's centre, parsed from its name."""

    size: int  # of the filter's side; 0 without smoothing
    learnable: bool = False
    binomial: bool = False  # 1-2-1, else the average


_GAUSSIAN, _NOT_SMOOTHED = KernelType(), SmoothType(0)


def kernel_type(name: str) -> KernelType:
    """`gaussian` or `inv_{alpha}_{lambda}[_asym][_fixed]`, parsed.

    Raises:
        ValueError: for any other name.
    """
    if name == "gaussian":
        return _GAUSSIAN
    parts = _INVERSE.fullmatch(name) if isinstance(name, str) else None
    if parts is None:
        raise ValueError(f'kernel_type must be "gaussian" or "inv_{{alpha}}_{{lambda}}[_asym][_fixed]", got {name!r}')
    return KernelType(True, float(parts[1]), float(parts[2]), parts[3] is not None, parts[4] is not None)


def smooth_type(name: str) -> SmoothType:
    """`none`, `gaussian`, `average_{n}` or `full_{n}`, parsed.

    Raises:
        ValueError: for any other name, or an even n.
    """
    if name == "none":
        return _NOT_SMOOTHED
    if name == "gaussian":
        return SmoothType(3, binomial=True)
    parts = _SMOOTH.fullmatch(name) if isinstance(name, str) else None
    if parts is None or int(parts[2]) % 2 == 0:
        raise ValueError(
            'smooth_kernel_type must be "none", "gaussian", "average_{n}" or "full_{n}" with an odd n, '
            f"got {name!r}"
        )
    return SmoothType(int(parts[2]), learnable=parts[1] == "full")


def smoothing_filter(
    smooth: SmoothType, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The filter of a smoothing, or where a learnable one starts (the average): [1, 1, n, n], summing to 1."""
    if smooth.binomial:
        side = torch.tensor([0.25, 0.5, 0.25], device=device, dtype=dtype)
    else:
        side = torch.full((smooth.size,), 1 / smooth.size, device=device, dtype=dtype)
    return torch.outer(side, side)[None, None]


def centred_distance2d(guide: Tensor, window: Window, smoothing: Tensor | None, *, asymmetric: bool) -> Tensor:
    """||f_j - c_i||^2, or where asymmetric ||max(f_j - c_i, 0)||^2, with c the guide smoothed by a filter, if given.

    [B, G, H, W] -> [B, 1, kh, kw, Ho, Wo]. In PyTorch's own operations, for guides that are compared otherwise than
    pixel with pixel; their gradient keeps no copy of the guide a tap, but where asymmetric.
    """
    padded = pad(guide.to(accumulate_dtype(guide.dtype)), window)
    c_i = _centres(padded, window, smoothing)
    distances = []
    for _, _, f_j in taps(padded, window, c_i.shape[2], c_i.shape[3]):
        # The backward of mse_loss holds its two arguments, a view among them, and not their difference.
        squares = F.relu(f_j - c_i).square() if asymmetric else F.mse_loss(f_j, c_i, reduction="none")
        distances.append(squares.sum(dim=1, keepdim=True))
    per_tap: Tensor = torch.stack(distances, dim=2).unflatten(2, window.kernel_size)
    return per_tap


def _centres(padded: Tensor, window: Window, smoothing: Tensor | None) -> Tensor:
    """The guide at the centre of each window, smoothed where a filter is given: -> [B, G, Ho, Wo].

    The guide counts as zero outside the image, for the smoothing too.
    """
    (kh, kw), (sy, sx), _, (dy, dx) = window
    ho, wo = window._replace(padding=(0, 0)).output_size(padded.shape[2], padded.shape[3])
    n = 1
    if smoothing is not None:
        n = smoothing.shape[-1]
        padded = F.pad(padded, (n // 2,) * 4)
    top, left = kh // 2 * dy, kw // 2 * dx
    near = padded[:, :, top : top + (ho - 1) * sy + n, left : left + (wo - 1) * sx + n]
    if smoothing is None:
        return near[:, :, ::sy, ::sx]
    # A sum over views, not a convolution: autocast would narrow that one.
    filtering = Window((n, n), (sy, sx))
    weight = smoothing.to(padded.dtype)[0, 0]
    smooth = torch.zeros_like(near[:, :, :ho, :wo])
    for i, j, view in taps(near, filtering, ho, wo):
        smooth = smooth + weight[i, j] * view
    return smooth


def kernel_of(distance: Tensor, function: KernelType, alpha: Tensor | None, lambda_: Tensor | None) -> Tensor:
    """K of squared distances [B, 1 or C, kh, kw, Ho, Wo], same shape.

    `alpha` and `lambda_`, one number or one a channel, take the place of those in the function's name.
    """
    if not function.inverse:
        return torch.exp(-0.5 * distance)
    near = distance + 1e-4
    power = near.pow(function.lambda_ / 2) if lambda_ is None else near.pow(_per_channel(lambda_, distance) / 2)
    return power + (function.alpha if alpha is None else _per_channel(alpha, distance))


def _per_channel(x: Tensor, distance: Tensor) -> Tensor:
    return x.to(distance.dtype).view(1, -1, 1, 1, 1, 1)


def counted_taps(mask: Tensor, window: Window, output_size: tuple[int, int], *, transposed: bool) -> Tensor:
    """Which taps see a pixel whose mask is not zero: [B, 1, H, W] -> bool [B, 1, kh, kw, Ho, Wo].

    Pixels outside the image, and those that the transposed operator inserts, are never seen.
    """
    seen = mask != 0
    if transposed:
        seen = spread(seen, window, *output_size)
        window = Window(window.kernel_size, dilation=window.dilation)
    return all_taps(seen, window)


def count(kernel: Tensor, counts: Tensor, possible: Tensor, *, normalize: bool) -> Tensor:
    """K with only some taps counting, divided by its sum over them, or by their share of the possible ones.

    A window in which none counts is 0.
    """
    kernel = torch.where(counts, kernel, 0)
    if normalize:
        total = kernel.sum(dim=(2, 3), keepdim=True)
    else:
        all_counting, all_possible = (x.to(kernel.dtype).sum(dim=(2, 3), keepdim=True) for x in (counts, possible))
        total = all_counting / all_possible.clamp_min(1)
    return kernel / torch.where(total == 0, 1, total)


_warned_of_constant_kernel = False


def warn_if_constant(window: Window, smooth_kernel_type: str, stacklevel: int) -> None:
    """Warn once a process of a window that sees the pixel it is centred on and nothing else."""
    global _warned_of_constant_kernel  # noqa: PLW0603
    if window.kernel_size != (1, 1) or smooth_kernel_type != "none":
        return
    if _warned_of_constant_kernel or torch.compiler.is_compiling():
        return
    _warned_of_constant_kernel = True
    warnings.warn(
        "a 1x1 window has one tap, at distance 0: K is constant there, and the guide has no effect",
        UserWarning,
        stacklevel,
    )


def triangle(kernel_size: int, stride: int, dilation: int) -> list[float]:
    """The weights of linear interpolation between pixels `stride` apart, at the taps of a window.

    Raises:
        ValueError: where the window does not reach the neighbouring pixels.
    """
    if stride > 1 and (dilation > 1 or kernel_size < 2 * stride - 1):
        raise ValueError(
            f'filler="linear" needs a kernel_size of at least 2 * stride - 1 = {2 * stride - 1} and dilation 1, '
            f"got kernel_size {kernel_size} and dilation {dilation}"
        )
    return [max(0.0, 1 - abs(tap - kernel_size // 2) * dilation / stride) for tap in range(kernel_size)]


def taps_together(kernel_size: int, step: int, dilation: int) -> list[int]:
    """For each tap, how many see a pixel where it does, of pixels `step` apart: what normalisation divides K by."""
    places = [tap * dilation % step for tap in range(kernel_size)]
    return [places.count(place) for place in places]
