"""The adapting kernel K: from a guide to one weight for each pixel and tap."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops import adapting, library
from pac_ops.arguments import (
    IntOrPair,
    check_devices,
    check_fits,
    check_image,
    check_mask,
    check_no_word,
    check_output_padding,
    check_tensor,
    make_window,
    pair,
)
from pac_ops.dtypes import accumulate_dtype
from pac_ops.geometry import Pair, Window
from pac_ops.published import NATIVE_IMPL, answers


def squared_distance2d(
    guide: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
) -> Tensor:
    """||f_i - f_j||^2 between the guide at each window's centre and at each of its taps.

    The guide counts as zero outside the image; where the input is zero there too, those taps have no effect.

    Args:
        guide: [B, G, H, W], any floating dtype, any G.
        kernel_size: the window, odd in both directions.
        stride: as in `torch.nn.Conv2d`.
        padding: as in `torch.nn.Conv2d`, "same" and "valid" included.
        dilation: as in `torch.nn.Conv2d`.

    Returns:
        [B, 1, kh, kw, Ho, Wo], float32 (float64 for a float64 guide).
    """
    check_image("guide", guide)
    window = make_window(kernel_size, stride, padding, dilation)
    check_fits(window, guide.shape[2], guide.shape[3])
    result: Tensor = library.squared_distance2d(guide, *window)
    return result


@answers(input="write guide=", native_impl=NATIVE_IMPL)
def packernel2d(
    guide: Tensor,
    mask: Tensor | None = None,
    kernel_size: IntOrPair = 3,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    output_padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    kernel_type: str = "gaussian",
    smooth_kernel_type: str = "none",
    smooth_kernel: Tensor | None = None,
    inv_alpha: Tensor | None = None,
    inv_lambda: Tensor | None = None,
    channel_wise: bool = False,
    normalize_kernel: bool = False,
    transposed: bool = False,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """The adapting kernel K(f_i, f_j) of Su et al., CVPR 2019, section 3.

    `gaussian` is exp(-1/2 ||f_i - f_j||^2); `inv_{alpha}_{lambda}` is alpha + (||f_i - f_j||^2 + 1e-4)^(lambda/2),
    and with `_asym` f_j - f_i is clipped below at 0 before it is squared. f_i may be smoothed
    (`smooth_kernel_type`): `gaussian`, the 1-2-1 binomial; `average_{n}`; `full_{n}`, the n x n `smooth_kernel`.

    Args:
        guide: f, [B, G, H, W], any floating dtype, any G. It counts as zero outside the image.
        mask: [B, 1, H, W] of any dtype, of the input's size: taps on a zero do not count. Without
            `normalize_kernel` K is then divided by the share of the window's taps (inside the image) that count.
            Of a guide and a mask, one may be of a single image and serve all of the other's.
        kernel_size: the window, odd in both directions.
        stride: as in `torch.nn.Conv2d`, or with `transposed` as in `torch.nn.ConvTranspose2d`.
        padding: likewise; "same" and "valid" too unless transposed.
        output_padding: as in `torch.nn.ConvTranspose2d`; only with `transposed`.
        dilation: as in `torch.nn.Conv2d`.
        kernel_type: `gaussian` or `inv_{alpha}_{lambda}[_asym][_fixed]` (`_fixed` makes no difference here).
        smooth_kernel_type: `none`, `gaussian`, `average_{n}` or `full_{n}`.
        smooth_kernel: [1, 1, n, n], in place of the type's own filter; `full_{n}` needs it.
        inv_alpha: alpha in place of the name's: one number, or G of them with `channel_wise`.
        inv_lambda: lambda, likewise.
        channel_wise: a kernel for each channel of the guide, from that channel alone.
        normalize_kernel: divide K by its sum over the window's taps that count: inside the image, not masked, and
            with `transposed` on a pixel of the input.
        transposed: for `pacconv_transpose2d`: the guide has the *output's* size, the mask the input's.
        ceil_mode: as in `torch.nn.AvgPool2d`.

    Returns:
        K, [B, 1, kh, kw, Ho, Wo] ([B, G, kh, kw, Ho, Wo] if `channel_wise`), float32, or float64 for a float64 guide;
        and the output mask, [B, 1, Ho, Wo] in the mask's dtype, 0 where no tap counted (None without a mask).
    """
    window = make_window(kernel_size, stride, check_no_word(padding) if transposed else padding, dilation)
    return kernel_under(
        window,
        guide,
        mask,
        output_padding,
        kernel_type,
        smooth_kernel_type,
        smooth_kernel,
        inv_alpha,
        inv_lambda,
        channel_wise,
        normalize_kernel,
        transposed,
        ceil_mode,
    )


def kernel_under(
    window: Window,
    guide: Tensor,
    mask: Tensor | None,
    output_padding: IntOrPair = 0,
    kernel_type: str = "gaussian",
    smooth_kernel_type: str = "none",
    smooth_kernel: Tensor | None = None,
    inv_alpha: Tensor | None = None,
    inv_lambda: Tensor | None = None,
    channel_wise: bool = False,
    normalize_kernel: bool = False,
    transposed: bool = False,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`packernel2d` under a window."""
    check_image("guide", guide)
    function = adapting.kernel_type(kernel_type)
    smoothing = _smoothing(smooth_kernel_type, smooth_kernel, guide)
    for name, number in (("inv_alpha", inv_alpha), ("inv_lambda", inv_lambda)):
        if number is not None:
            _check_inverse(name, number, guide, function=function, channel_wise=channel_wise)
    image, extra = _placed(guide, window, output_padding, transposed=transposed, ceil_mode=ceil_mode)
    if mask is not None:
        mask = check_mask(mask, _images(guide, mask), *image, guide.device)
    adapting.warn_if_constant(window, smooth_kernel_type, stacklevel=5)

    on_guide = window.on_output() if transposed else window
    padded = F.pad(guide, (0, extra[1], 0, extra[0])) if extra != (0, 0) else guide
    if channel_wise:
        padded = padded.flatten(0, 1)[:, None]  # every channel an image of its own
    in_one_pass = smoothing is None and not function.inverse
    if in_one_pass:
        per_tap = library.gaussian_kernel2d(padded, *on_guide)
    elif smoothing is None and not function.asymmetric:
        per_tap = library.squared_distance2d(padded, *on_guide)
    else:
        per_tap = adapting.centred_distance2d(padded, on_guide, smoothing, asymmetric=function.asymmetric)
    if channel_wise:
        per_tap = per_tap[:, 0].unflatten(0, guide.shape[:2])
    kernel = per_tap if in_one_pass else adapting.kernel_of(per_tap, function, inv_alpha, inv_lambda)
    if mask is None and not normalize_kernel:
        return kernel, None
    return _counted(kernel, mask, window, image, extra, normalize_kernel=normalize_kernel, transposed=transposed)


def mask_kernel2d(
    kernel: Tensor,
    mask: Tensor,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    normalize_kernel: bool = False,
    transposed: bool = False,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Apply a mask to a kernel made beforehand, as `packernel2d` does to the one it makes.

    Args:
        kernel: K, [B, 1 or C, kh, kw, Ho, Wo].
        mask: [B, 1, H, W] of any dtype, of the input's size. One of the two may be of a single image, for all.
        stride: of the window K was made with; so are padding, dilation, transposed and ceil_mode.
        padding: see stride.
        dilation: see stride.
        normalize_kernel: divide by the sum over the taps that count, instead of by their share.
        transposed: see stride.
        ceil_mode: see stride.

    Returns:
        K as masked, float32 or wider, and the output mask [B, 1, Ho, Wo] in the mask's dtype.
    """
    check_tensor("kernel", kernel)
    if kernel.dim() != 6:
        raise ValueError(f"kernel must be [B, 1 or C, kh, kw, Ho, Wo], got {list(kernel.shape)}")
    window = make_window((kernel.shape[2], kernel.shape[3]), stride, padding, dilation)
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
    if mask.dim() != 4:
        raise ValueError(f"mask must be [B, 1, H, W], got {list(mask.shape)}")
    image = (mask.shape[2], mask.shape[3])
    mask = check_mask(mask, _images(kernel, mask), *image, kernel.device, "kernel")
    extra = window.ceil_padding(*image) if ceil_mode else (0, 0)
    if not transposed:
        size = window.output_size(image[0] + extra[0], image[1] + extra[1])
        if size != tuple(kernel.shape[4:]):
            raise ValueError(
                f"mask must be of the input's height and width, of which the window makes {list(kernel.shape[4:])}, "
                f"got {list(image)}, of which it makes {list(size)}"
            )
    wide = kernel.to(accumulate_dtype(kernel.dtype))
    masked, output_mask = _counted(
        wide, mask, window, image, extra, normalize_kernel=normalize_kernel, transposed=transposed
    )
    assert output_mask is not None  # noqa: S101 (for the type checker)
    return masked, output_mask


def _images(x: Tensor, mask: Tensor) -> int:
    """How many images a guide or a kernel is for, with this mask."""
    return mask.shape[0] if x.shape[0] == 1 and isinstance(mask, Tensor) and mask.dim() == 4 else x.shape[0]


def _placed(
    guide: Tensor, window: Window, output_padding: IntOrPair, *, transposed: bool, ceil_mode: bool
) -> tuple[Pair, Pair]:
    """The input's height and width, and the rows and columns that `ceil_mode` adds."""
    _, _, height, width = guide.shape
    if not transposed:
        if pair("output_padding", output_padding, 0) != (0, 0):
            raise ValueError(f"output_padding must be 0 unless transposed=True, got {output_padding!r}")
        extra = window.ceil_padding(height, width) if ceil_mode else (0, 0)
        check_fits(window, height + extra[0], width + extra[1])
        return (height, width), extra
    if ceil_mode:
        raise ValueError("ceil_mode must be False with transposed=True, got True")
    ends = check_output_padding(output_padding, window)
    image = []
    for name, out, k, s, p, d, e in zip(("height", "width"), (height, width), *window, ends, strict=True):
        spare = out - e - 1 - d * (k - 1) + 2 * p
        if spare < 0 or spare % s:
            raise ValueError(
                f"guide must have the output's {name}, {s} * n + {out - spare} for an input of n + 1, got {out}"
            )
        image.append(spare // s + 1)
    return (image[0], image[1]), (0, 0)


def _counted(
    kernel: Tensor,
    mask: Tensor | None,
    window: Window,
    image: Pair,
    extra: Pair,
    *,
    normalize_kernel: bool,
    transposed: bool,
) -> tuple[Tensor, Tensor | None]:
    """K with only the taps that count, and the output mask."""
    size = (kernel.shape[4], kernel.shape[5])
    inside = torch.ones(1, 1, *image, dtype=torch.bool, device=kernel.device)
    possible = adapting.counted_taps(F.pad(inside, (0, extra[1], 0, extra[0])), window, size, transposed=transposed)
    if mask is None:
        return adapting.count(kernel, possible, possible, normalize=normalize_kernel), None
    padded = F.pad(mask != 0, (0, extra[1], 0, extra[0]))
    counts = adapting.counted_taps(padded, window, size, transposed=transposed)
    output_mask = counts.flatten(2, 3).any(dim=2).to(mask.dtype)
    return adapting.count(kernel, counts, possible, normalize=normalize_kernel), output_mask


def _smoothing(name: str, given: Tensor | None, guide: Tensor) -> Tensor | None:
    """The smoothing filter that a type stands for, or the one given in its place."""
    smooth = adapting.smooth_type(name)
    if given is None:
        if smooth.learnable:
            raise ValueError(f"smooth_kernel must be given for smooth_kernel_type {name!r}, got None")
        return adapting.smoothing_filter(smooth, guide.device, accumulate_dtype(guide.dtype)) if smooth.size else None
    check_tensor("smooth_kernel", given)
    check_devices(guide.device, {"smooth_kernel": given}, "guide")
    expected = [1, 1, smooth.size, smooth.size]
    if not smooth.size:
        raise ValueError('smooth_kernel must be None for smooth_kernel_type "none", got a tensor')
    if list(given.shape) != expected:
        raise ValueError(f"smooth_kernel must be {expected} for smooth_kernel_type {name!r}, got {list(given.shape)}")
    return given


def _check_inverse(
    name: str, number: Tensor, guide: Tensor, *, function: adapting.KernelType, channel_wise: bool
) -> None:
    check_tensor(name, number)
    check_devices(guide.device, {name: number}, "guide")
    if not function.inverse:
        raise ValueError(f'{name} must be None for kernel_type "gaussian", got a tensor')
    if number.numel() != 1 and not (channel_wise and list(number.shape) == [guide.shape[1]]):
        expected = f"one number, or [{guide.shape[1]}]" if channel_wise else "one number"
        raise ValueError(f"{name} must be {expected}, got {list(number.shape)}")
