"""The whole family spelt out with `torch.nn.functional` and autograd: an oracle that shares no code with pac_ops."""

import torch
import torch.nn.functional as F


def windows(x, kernel_size, stride=(1, 1), padding=(0, 0), dilation=(1, 1)):
    """What each tap of each window sees: [B, C, H, W] -> [B, C, kh, kw, Ho, Wo]."""
    b, c, height, width = x.shape
    ho, wo = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip((height, width), kernel_size, stride, padding, dilation, strict=True)
    )
    if c == 0:  # not taken by unfold
        return x.new_zeros(b, c, *kernel_size, ho, wo)
    return F.unfold(x, kernel_size, dilation, padding, stride).view(b, c, *kernel_size, ho, wo)


def zeros_between(x, kernel_size, stride, padding, dilation, output_padding):
    """Insert stride - 1 zeros and pad, so that a window of stride 1 without padding gives the transposed output."""
    b, c, height, width = x.shape
    spaced = x.new_zeros(b, c, height, stride[0], width, stride[1])
    spaced[:, :, :, 0, :, 0] = x
    spaced = spaced.view(b, c, height * stride[0], width * stride[1])
    spaced = spaced[:, :, : (height - 1) * stride[0] + 1, : (width - 1) * stride[1] + 1]
    top, left = (d * (k - 1) - p for k, p, d in zip(kernel_size, padding, dilation, strict=True))
    return F.pad(spaced, (left, left + output_padding[1], top, top + output_padding[0]))


def smoothed(guide, kernel):
    """Each channel filtered, zero outside the image, on a map that is larger by `MARGIN` on every side."""
    b, g, height, width = guide.shape
    padded = F.pad(guide, (MARGIN,) * 4).view(b * g, 1, height + 2 * MARGIN, width + 2 * MARGIN)
    if kernel is not None and g > 0:
        padded = F.conv2d(padded, kernel, padding=kernel.shape[-1] // 2)
    return padded.view(b, g, height + 2 * MARGIN, width + 2 * MARGIN)


MARGIN = 16


def smoothing(name, learned):
    if name == "none":
        return None
    if name == "gaussian":
        return torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]], dtype=torch.float64)[None, None] / 16
    kind, n = name.split("_")
    return learned if kind == "full" else torch.full((1, 1, int(n), int(n)), 1 / int(n) ** 2, dtype=torch.float64)


def packernel(guide, mask, geometry, *, kernel_type, smooth, alpha, lambda_, channel_wise, normalize, image_size):
    """K and the output mask. `geometry`: kernel_size, stride, padding, dilation, output_padding or None, ceil."""
    k, stride, padding, dilation, output_padding, extra = geometry
    if output_padding is not None:
        on_guide = (k, (1, 1), tuple(d * (n // 2) for n, d in zip(k, dilation, strict=True)), dilation)
    else:
        on_guide = (k, stride, padding, dilation)
    guide = F.pad(guide, (0, extra[1], 0, extra[0]))
    f_j = windows(guide, *on_guide)
    grown = tuple(p - MARGIN for p in on_guide[2])
    centred = F.pad(smoothed(guide, smooth), (grown[1], grown[1], grown[0], grown[0]))
    f_i = windows(centred, k, on_guide[1], (0, 0), dilation)[:, :, k[0] // 2, k[1] // 2][:, :, None, None]
    away = f_j - f_i
    if kernel_type.endswith(("_asym", "_asym_fixed")):
        away = away * (away > 0)
    d = away**2
    if not channel_wise:
        d = d.sum(1, keepdim=True)
    if kernel_type == "gaussian":
        kernel = torch.exp(-d / 2)
    else:
        shape = (1, -1, 1, 1, 1, 1)
        kernel = alpha.view(shape) + (d + 1e-4) ** (lambda_.view(shape) / 2)

    def seen(pixels):
        pixels = F.pad(pixels, (0, extra[1], 0, extra[0]))
        if output_padding is not None:
            return windows(zeros_between(pixels, k, stride, padding, dilation, output_padding), k, dilation=dilation)
        return windows(pixels, k, stride, padding, dilation)

    possible = seen(torch.ones(guide.shape[0], 1, *image_size, dtype=torch.float64))
    valid = possible if mask is None else seen((mask != 0).double())
    if normalize:
        kernel = kernel * valid
        total = kernel.sum((2, 3), keepdim=True)
        kernel = kernel / total.masked_fill(total == 0, 1)
    elif mask is not None:
        share = valid.sum((2, 3), keepdim=True) / possible.sum((2, 3), keepdim=True).clamp_min(1)
        kernel = kernel * valid / share.masked_fill(share == 0, 1)
    return kernel, None if mask is None else valid.amax((2, 3))


def convolve(seen, kernel, weight, bias, groups):
    """sum K W v: windows [B, C, kh, kw, Ho, Wo], weight [O, C/groups, kh, kw], or [1, 1, kh, kw] for every channel."""
    if weight.shape[:2] == (1, 1) and groups == 0:
        out = (seen * kernel * weight[..., None, None]).sum((2, 3))
    else:
        parts = zip((seen * kernel).chunk(groups, 1), weight.chunk(groups, 0), strict=True)
        out = torch.cat([torch.einsum("bcijyx,ocij->boyx", v, w) for v, w in parts], 1)
    return out if bias is None else out + bias[:, None, None]


def turned(weight, groups):
    """The convolution's weight that a transposed convolution's weight stands for."""
    return torch.cat([w.transpose(0, 1).flip(2, 3) for w in weight.chunk(max(groups, 1), 0)], 0)
