"""The two convolutions as layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pac_ops import adapting
from pac_ops.arguments import (
    IntOrPair,
    check_image,
    check_output_padding,
    make_window,
    pair,
)
from pac_ops.functional.convolution import pacconv2d, pacconv_transpose2d
from pac_ops.geometry import Pair, Window
from pac_ops.layers.adapting import AdaptingLayer, Device, Result, check_call
from pac_ops.published import INPUT_2D, INPUT_FOR_KERNEL, NATIVE_IMPL, answers, filler_instead


def _check_filters(filler: str, in_channels: int, out_channels: int, groups: int, *, shared_filters: bool) -> None:
    if filler not in ("uniform", "linear"):
        raise ValueError(f'filler must be "uniform" or "linear", got {filler!r}{filler_instead(filler)}')
    if shared_filters and groups != 1:
        raise ValueError(f"groups must be 1 with shared_filters=True, got {groups}")
    if (shared_filters or filler == "linear") and in_channels != out_channels:
        why = "shared_filters=True" if shared_filters else 'filler="linear"'
        raise ValueError(f"out_channels must equal in_channels = {in_channels} with {why}, got {out_channels}")


def _fill(layer: "PacConv2d | PacConvTranspose2d", window: Window, filler: str) -> None:
    """Give a convolution shared filters, and a weight that interpolates each channel linearly, where asked for."""
    if layer.shared_filters:
        layer.weight = nn.Parameter(layer.weight.new_empty(1, 1, *window.kernel_size))
        layer.reset_parameters()
    if filler == "linear":
        weight = layer.weight.detach()
        rows, columns = (weight.new_tensor(taps) for taps in _interpolating(layer, window))
        same = torch.eye(weight.shape[1], device=weight.device, dtype=weight.dtype)  # each channel to itself
        same = same.repeat(weight.shape[0] // weight.shape[1], 1)
        weight.copy_(same[:, :, None, None] * torch.outer(rows, columns))
        if layer.bias is not None:
            layer.bias.detach().zero_()


def _interpolating(layer: "PacConv2d | PacConvTranspose2d", window: Window) -> list[list[float]]:
    """The taps of linear interpolation, down and across; times what normalisation divides K by between the pixels."""
    sides = []
    for k, s, d in zip(window.kernel_size, window.stride, window.dilation, strict=True):
        taps = adapting.triangle(k, s, d)
        if layer.normalize_kernel:
            together = adapting.taps_together(k, s if isinstance(layer, PacConvTranspose2d) else 1, d)
            taps = [tap * count for tap, count in zip(taps, together, strict=True)]
        sides.append(taps)
    return sides


def _padded(x: Tensor, padding: Pair, mode: str) -> Tensor:
    rows, columns = padding
    return F.pad(x, (columns, columns, rows, rows), mode=mode)


class PacConv2d(AdaptingLayer, nn.Conv2d):
    """Pixel-adaptive convolution (Su et al., CVPR 2019) with `torch.nn.Conv2d`'s arguments, weights and sizes.

    Called with a guide of the input's height and width, `layer(input, guide)`, or with an adapting kernel made
    beforehand, `layer(input, None, kernel)`. With a constant guide it computes exactly what the `nn.Conv2d`
    with the same weights computes. A `padding_mode` other than "zeros" pads the guide the same way, so that
    every tap counts. Windows must be odd. A guide, a kernel or a mask of a single image serves the whole batch.

    With a mask [B, 1, H, W], pixels where it is 0 do not count (see `packernel2d`), and the call returns the output
    and an output mask [B, 1, Ho, Wo].

    After `torch.nn.Conv2d`'s arguments: `kernel_type`, `smooth_kernel_type` and `normalize_kernel` as in
    `packernel2d`, their numbers learnable as `inv_alpha`, `inv_lambda` and `smooth_kernel`; `shared_filters`, one
    kh x kw filter for every channel; `filler`, how the weight starts: "uniform" as `torch.nn.Conv2d`'s, "linear" as
    linear interpolation (at stride 1: the identity), with `normalize_kernel` away from the border, where K has fewer
    taps to share it.

    Shapes: input [B, C, H, W], guide [B, G, H, W] with any G, kernel [B, 1, kh, kw, Ho, Wo] -> [B, O, Ho, Wo].

    Raises:
        TypeError: where neither or both of guide and kernel are given, or one is no tensor.
        ValueError: where a shape or an option does not fit.
    """

    @answers(native_impl=NATIVE_IMPL)
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair | str = 0,
        dilation: IntOrPair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        kernel_type: str = "gaussian",
        smooth_kernel_type: str = "none",
        normalize_kernel: bool = False,
        shared_filters: bool = False,
        filler: str = "uniform",
    ) -> None:
        window = make_window(kernel_size, stride, padding, dilation)  # checked before anything is allocated
        _check_filters(filler, in_channels, out_channels, groups, shared_filters=shared_filters)
        sizes = (in_channels, out_channels, window.kernel_size, window.stride, padding, window.dilation, groups)
        # torch has a literal for the padding mode, and checks it
        super().__init__(*sizes, bias, padding_mode, device, dtype)  # type: ignore[arg-type]
        self._set_up_kernel(window, kernel_type, smooth_kernel_type, normalize_kernel, device, dtype)
        self.shared_filters = shared_filters
        _fill(self, window, filler)

    @answers(input_2d=INPUT_2D, input_for_kernel=INPUT_FOR_KERNEL)
    def forward(  # type: ignore[override] # with a mask it returns two tensors
        self, input: Tensor, guide: Tensor | None = None, kernel: Tensor | None = None, mask: Tensor | None = None
    ) -> Result:
        """Apply the layer; see the class."""
        seen, mask = check_call(input, guide, kernel, mask)
        window = make_window(self.kernel_size, self.stride, self.padding, self.dilation)  # type: ignore[arg-type]
        padded_mask = mask
        if self.padding_mode != "zeros" and window.padding != (0, 0):
            seen = _padded(seen, window.padding, self.padding_mode)
            guide = None if guide is None else _padded(guide, window.padding, self.padding_mode)
            if mask is not None:
                padded_mask = _padded((mask != 0).to(seen.dtype), window.padding, self.padding_mode)
            window = window._replace(padding=(0, 0))
        kernel, output_mask = self._kernel(guide, kernel, padded_mask, window)
        sliding = (window.stride, window.padding, window.dilation)
        out = pacconv2d(seen, kernel, self.weight, self.bias, *sliding, self.groups, self.shared_filters)
        if mask is None:
            return out
        assert output_mask is not None  # noqa: S101 (for the type checker)
        return out, output_mask.to(mask.dtype)


class PacConvTranspose2d(AdaptingLayer, nn.ConvTranspose2d):
    """Pixel-adaptive transposed convolution with `torch.nn.ConvTranspose2d`'s arguments, weights and sizes.

    Guided upsampling (Su et al., CVPR 2019, section 4.1): the guide has the *output's* height and width. Otherwise it
    is called, masked (by a mask of the input's size) and constructed as `PacConv2d`. With `filler="linear"` it
    starts as bilinear upsampling; use an odd `kernel_size` of at least 2 * stride - 1,
    `padding=kernel_size // 2` and `output_padding=stride - 1`. With `normalize_kernel` use 2 * stride - 1 itself:
    between pixels no tap of such a window is outside the image.

    Shapes: input [B, C, H, W], guide [B, G, Ho, Wo], kernel [B, 1, kh, kw, Ho, Wo] -> [B, O, Ho, Wo].

    Raises:
        TypeError: where neither or both of guide and kernel are given, or one is no tensor.
        ValueError: where a shape or an option does not fit.
    """

    @answers(native_impl=NATIVE_IMPL)
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: IntOrPair,
        stride: IntOrPair = 1,
        padding: IntOrPair = 0,
        output_padding: IntOrPair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: IntOrPair = 1,
        padding_mode: str = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        kernel_type: str = "gaussian",
        smooth_kernel_type: str = "none",
        normalize_kernel: bool = False,
        shared_filters: bool = False,
        filler: str = "uniform",
    ) -> None:
        window = make_window(kernel_size, stride, pair("padding", padding, 0), dilation)
        extra = check_output_padding(output_padding, window)
        _check_filters(filler, in_channels, out_channels, groups, shared_filters=shared_filters)
        sizes = (in_channels, out_channels, window.kernel_size, window.stride, window.padding, extra, groups)
        # torch has a literal for the padding mode, and checks it; a dilation may be a pair
        super().__init__(*sizes, bias, window.dilation, padding_mode, device, dtype)  # type: ignore[arg-type]
        self._set_up_kernel(window, kernel_type, smooth_kernel_type, normalize_kernel, device, dtype)
        self.shared_filters = shared_filters
        _fill(self, window, filler)

    @answers(input_2d=INPUT_2D, input_for_kernel=INPUT_FOR_KERNEL)
    def forward(  # type: ignore[override] # no output_size: the guide has it
        self, input: Tensor, guide: Tensor | None = None, kernel: Tensor | None = None, mask: Tensor | None = None
    ) -> Result:
        """Apply the layer; see the class."""
        window = make_window(self.kernel_size, self.stride, self.padding, self.dilation)  # type: ignore[arg-type]
        extra = pair("output_padding", self.output_padding, 0)  # type: ignore[arg-type]
        check_image("input", input)
        size = window.transposed_size(input.shape[2], input.shape[3], extra)
        seen, mask = check_call(input, guide, kernel, mask, size)
        kernel, output_mask = self._kernel(guide, kernel, mask, window, output_padding=extra, transposed=True)
        options = (window.stride, window.padding, extra, self.groups, window.dilation, self.shared_filters)
        out = pacconv_transpose2d(seen, kernel, self.weight, self.bias, *options)
        return out if output_mask is None else (out, output_mask)
