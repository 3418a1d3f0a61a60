"""The operators as layers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pac_ops import adapting
from pac_ops.arguments import (
    IntOrPair,
    check_devices,
    check_image,
    check_mask,
    check_output_padding,
    make_window,
    pair,
)
from pac_ops.functional import mask_kernel2d, pacconv2d, pacconv_transpose2d, packernel2d, pacpool2d
from pac_ops.geometry import Pair, Window

Device = torch.device | str | None
Result = Tensor | tuple[Tensor, Tensor]


def window_of(conv: nn.Conv2d) -> Window:
    """The sliding window of a convolution.

    Raises:
        ValueError: where its window is even and so has no centre.
    """
    return make_window(conv.kernel_size, conv.stride, conv.padding, conv.dilation)  # type: ignore[arg-type]


def pad_as(padding_mode: str, x: Tensor, padding: Pair) -> tuple[Tensor, Pair]:
    """Pad as a convolution with this `padding_mode` would: the padded map, and the zero padding still to do."""
    if padding_mode == "zeros" or padding == (0, 0):
        return x, padding
    rows, columns = padding
    return F.pad(x, (columns, columns, rows, rows), mode=padding_mode), (0, 0)


class _Adapting(nn.Module):
    """What the layers share: the options of the adapting kernel, its learnable numbers, and how it is made."""

    kernel_type: str
    smooth_kernel_type: str
    normalize_kernel: bool
    inv_alpha: Tensor | None
    inv_lambda: Tensor | None
    smooth_kernel: Tensor | None

    def _set_up_kernel(
        self,
        window: Window,
        kernel_type: str,
        smooth_kernel_type: str,
        normalize_kernel: bool,
        device: Device,
        dtype: torch.dtype | None,
        channels: int | None = None,
    ) -> None:
        function, smooth = adapting.kernel_type(kernel_type), adapting.smooth_type(smooth_kernel_type)
        adapting.warn_if_constant(window, smooth_kernel_type, stacklevel=4)
        self.kernel_type, self.smooth_kernel_type = kernel_type, smooth_kernel_type
        self.normalize_kernel = normalize_kernel
        shape = () if channels is None else (channels,)
        for name, start in (("inv_alpha", function.alpha), ("inv_lambda", function.lambda_)):
            number = torch.full(shape, start, device=device, dtype=dtype) if function.inverse else None
            self._hold(name, number, learnable=not function.fixed)
        smoothing = adapting.smoothing_filter(smooth, device, dtype) if smooth.size else None
        self._hold("smooth_kernel", smoothing, learnable=smooth.learnable)

    def _hold(self, name: str, value: Tensor | None, *, learnable: bool) -> None:
        if value is not None and learnable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value)

    def _kernel(
        self, guide: Tensor | None, kernel: Tensor | None, mask: Tensor | None, window: Window, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        """K, made from the guide or given, with only the taps that count where there is a mask; the output mask."""
        sliding: dict[str, Any] = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation}
        if guide is None:
            assert kernel is not None  # noqa: S101 (for the type checker; see _check_call)
            if mask is None:
                return kernel, None
            given = {name: options[name] for name in ("transposed", "ceil_mode") if name in options}
            return mask_kernel2d(kernel, mask, **sliding, **given, normalize_kernel=self.normalize_kernel)
        return packernel2d(
            guide,
            mask,
            window.kernel_size,
            **sliding,
            **options,
            kernel_type=self.kernel_type,
            smooth_kernel_type=self.smooth_kernel_type,
            smooth_kernel=self.smooth_kernel,
            inv_alpha=self.inv_alpha,
            inv_lambda=self.inv_lambda,
            normalize_kernel=self.normalize_kernel,
        )

    def _kernel_repr(self) -> str:
        shown = [] if self.kernel_type == "gaussian" else [f"kernel_type={self.kernel_type}"]
        shown += [] if self.smooth_kernel_type == "none" else [f"smooth_kernel_type={self.smooth_kernel_type}"]
        shown += ["normalize_kernel=True"] if self.normalize_kernel else []
        return "".join(f", {text}" for text in shown)


def _check_call(
    input: Tensor, guide: Tensor | None, kernel: Tensor | None, mask: Tensor | None, size: Pair | None = None
) -> Tensor:
    """Refuse what no layer takes; the input with masked pixels zeroed, so that a NaN there stays there.

    `size` is the height and width the guide must have, where not the input's.
    """
    if (guide is None) == (kernel is None):
        raise TypeError("give either a guide or a kernel: layer(input, guide) or layer(input, None, kernel)")
    check_image("input", input)
    if guide is not None:
        check_image("guide", guide)
        check_devices(input.device, {"guide": guide})
        whose = "input's batch, height and width" if size is None else "input's batch, the output's height and width"
        height, width = (input.shape[2], input.shape[3]) if size is None else size
        if guide.shape[0] != input.shape[0] or guide.shape[2] != height or guide.shape[3] != width:
            raise ValueError(
                f"guide must be [B, G, H, W] with the {whose}, [{input.shape[0]}, G, {height}, {width}], "
                f"got {list(guide.shape)}"
            )
    if mask is None:
        return input
    check_mask(mask, input.shape[0], input.shape[2], input.shape[3], input.device, "input")
    return input.masked_fill(mask == 0, 0)


def _check_filters(filler: str, in_channels: int, out_channels: int, groups: int, *, shared_filters: bool) -> None:
    if filler not in ("uniform", "linear"):
        raise ValueError(f'filler must be "uniform" or "linear", got {filler!r}')
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
        sides = zip(window.kernel_size, window.stride, window.dilation, strict=True)
        rows, columns = (weight.new_tensor(adapting.triangle(k, s, d)) for k, s, d in sides)
        same = torch.eye(weight.shape[1], device=weight.device, dtype=weight.dtype)  # each channel to itself
        same = same.repeat(weight.shape[0] // weight.shape[1], 1)
        weight.copy_(same[:, :, None, None] * torch.outer(rows, columns))
        if layer.bias is not None:
            layer.bias.detach().zero_()


class PacConv2d(nn.Conv2d, _Adapting):
    """Pixel-adaptive convolution (Su et al., CVPR 2019) with `torch.nn.Conv2d`'s arguments, weights and sizes.

    Called with a guide of the input's height and width, `layer(input, guide)`, or with an adapting kernel made
    beforehand, `layer(input, None, kernel)`. With a constant guide it computes exactly what the `nn.Conv2d`
    with the same weights computes. A `padding_mode` other than "zeros" pads the guide the same way, so that
    every tap counts. Windows must be odd.

    With a mask [B, 1, H, W], pixels where it is 0 do not count (see `packernel2d`), and the call returns the output
    and an output mask [B, 1, Ho, Wo].

    After `torch.nn.Conv2d`'s arguments: `kernel_type`, `smooth_kernel_type` and `normalize_kernel` as in
    `packernel2d`, their numbers learnable as `inv_alpha`, `inv_lambda` and `smooth_kernel`; `shared_filters`, one
    kh x kw filter for every channel; `filler`, how the weight starts: "uniform" as `torch.nn.Conv2d`'s, "linear" as
    linear interpolation (at stride 1: the identity).

    Shapes: input [B, C, H, W], guide [B, G, H, W] with any G, kernel [B, 1, kh, kw, Ho, Wo] -> [B, O, Ho, Wo].

    Raises:
        TypeError: where neither or both of guide and kernel are given, or one is no tensor.
        ValueError: where a shape or an option does not fit.
    """

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
        super().__init__(
            in_channels,
            out_channels,
            window.kernel_size,
            window.stride,
            padding,
            window.dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type] # a literal in torch, checked there
            device,
            dtype,
        )
        self._set_up_kernel(window, kernel_type, smooth_kernel_type, normalize_kernel, device, dtype)
        self.shared_filters = shared_filters
        _fill(self, window, filler)

    def forward(  # type: ignore[override] # with a mask it returns two tensors
        self, input: Tensor, guide: Tensor | None = None, kernel: Tensor | None = None, mask: Tensor | None = None
    ) -> Result:
        """Apply the layer; see the class."""
        seen = _check_call(input, guide, kernel, mask)
        window, given = window_of(self), mask
        if self.padding_mode != "zeros":
            padding = window.padding
            window = Window(window.kernel_size, window.stride, (0, 0), window.dilation)
            seen = pad_as(self.padding_mode, seen, padding)[0]
            guide = None if guide is None else pad_as(self.padding_mode, guide, padding)[0]
            given = None if mask is None else pad_as(self.padding_mode, (mask != 0).to(seen.dtype), padding)[0]
        kernel, output_mask = self._kernel(guide, kernel, given, window)
        sliding = (window.stride, window.padding, window.dilation)
        out = pacconv2d(seen, kernel, self.weight, self.bias, *sliding, self.groups, self.shared_filters)
        if mask is None:
            return out
        assert output_mask is not None  # noqa: S101 (for the type checker)
        return out, output_mask.to(mask.dtype)

    def extra_repr(self) -> str:
        """`torch.nn.Conv2d`'s, and what differs from a gaussian kernel."""
        shared = ", shared_filters=True" if self.shared_filters else ""
        return f"{super().extra_repr()}{self._kernel_repr()}{shared}"  # type: ignore[no-untyped-call]


class PacConvTranspose2d(nn.ConvTranspose2d, _Adapting):
    """Pixel-adaptive transposed convolution with `torch.nn.ConvTranspose2d`'s arguments, weights and sizes.

    Guided upsampling (Su et al., CVPR 2019, section 4.1): the guide has the *output's* height and width. Otherwise it
    is called, masked (by a mask of the input's size) and constructed as `PacConv2d`. With `filler="linear"` it
    starts as bilinear upsampling; use an odd `kernel_size` of at least 2 * stride - 1,
    `padding=kernel_size // 2` and `output_padding=stride - 1`.

    Shapes: input [B, C, H, W], guide [B, G, Ho, Wo], kernel [B, 1, kh, kw, Ho, Wo] -> [B, O, Ho, Wo].

    Raises:
        TypeError: where neither or both of guide and kernel are given, or one is no tensor.
        ValueError: where a shape or an option does not fit.
    """

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
        super().__init__(
            in_channels,
            out_channels,
            window.kernel_size,
            window.stride,
            window.padding,
            extra,
            groups,
            bias,
            window.dilation,  # torch takes pairs too
            padding_mode,  # type: ignore[arg-type] # a literal in torch, checked there
            device,
            dtype,
        )
        self._set_up_kernel(window, kernel_type, smooth_kernel_type, normalize_kernel, device, dtype)
        self.shared_filters = shared_filters
        _fill(self, window, filler)

    def forward(  # type: ignore[override] # no output_size: the guide has it
        self, input: Tensor, guide: Tensor | None = None, kernel: Tensor | None = None, mask: Tensor | None = None
    ) -> Result:
        """Apply the layer; see the class."""
        window = make_window(self.kernel_size, self.stride, self.padding, self.dilation)  # type: ignore[arg-type]
        extra = pair("output_padding", self.output_padding, 0)  # type: ignore[arg-type]
        check_image("input", input)
        size = window.transposed_size(input.shape[2], input.shape[3], extra)
        seen = _check_call(input, guide, kernel, mask, size)
        kernel, output_mask = self._kernel(guide, kernel, mask, window, output_padding=extra, transposed=True)
        out = pacconv_transpose2d(
            seen,
            kernel,
            self.weight,
            self.bias,
            window.stride,
            window.padding,
            extra,
            self.groups,
            window.dilation,
            self.shared_filters,
        )
        return out if output_mask is None else (out, output_mask)

    def extra_repr(self) -> str:
        """`torch.nn.ConvTranspose2d`'s, and what differs from a gaussian kernel."""
        shared = ", shared_filters=True" if self.shared_filters else ""
        return f"{super().extra_repr()}{self._kernel_repr()}{shared}"  # type: ignore[no-untyped-call]


class PacPool2d(_Adapting):
    """Pixel-adaptive pooling (Su et al., CVPR 2019, section 3): v'_i = sum_j K(f_i, f_j) v_j.

    Arguments and sizes are `torch.nn.AvgPool2d`'s (and `torch.nn.MaxPool2d`'s dilation); windows must be odd. With
    `normalize_kernel=True` and a constant guide it is average pooling with `count_include_pad=False`. It is called
    and masked as `PacConv2d`.

    With `channel_wise` each channel has its own kernel, from the guide's channel of the same number: the guide then
    has the input's channels. `channels`, with it and a learnable `inv_` kernel, makes `inv_alpha` and `inv_lambda`
    one number a channel.

    Shapes: input [B, C, H, W], guide [B, G, H, W], kernel [B, 1 or C, kh, kw, Ho, Wo] -> [B, C, Ho, Wo].

    Raises:
        TypeError: where neither or both of guide and kernel are given, or one is no tensor.
        ValueError: where a shape or an option does not fit.
    """

    def __init__(
        self,
        kernel_size: IntOrPair,
        stride: IntOrPair | None = None,
        padding: IntOrPair = 0,
        dilation: IntOrPair = 1,
        ceil_mode: bool = False,
        kernel_type: str = "gaussian",
        smooth_kernel_type: str = "none",
        channel_wise: bool = False,
        normalize_kernel: bool = False,
        channels: int | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.window = make_window(
            kernel_size, kernel_size if stride is None else stride, pair("padding", padding, 0), dilation
        )
        if channels is not None and not channel_wise:
            raise ValueError(f"channels must be None unless channel_wise=True, got {channels}")
        self.ceil_mode, self.channel_wise = ceil_mode, channel_wise
        self._set_up_kernel(self.window, kernel_type, smooth_kernel_type, normalize_kernel, device, dtype, channels)

    def forward(
        self, input: Tensor, guide: Tensor | None = None, kernel: Tensor | None = None, mask: Tensor | None = None
    ) -> Result:
        """Apply the layer; see the class."""
        seen = _check_call(input, guide, kernel, mask)
        if guide is not None and self.channel_wise and guide.shape[1] != input.shape[1]:
            raise ValueError(
                f"guide must have the input's {input.shape[1]} channels with channel_wise=True, got {guide.shape[1]}"
            )
        made = {"ceil_mode": self.ceil_mode, "channel_wise": self.channel_wise}
        kernel, output_mask = self._kernel(guide, kernel, mask, self.window, **made)
        window = self.window
        out = pacpool2d(
            seen, kernel, window.kernel_size, window.stride, window.padding, window.dilation, self.ceil_mode
        )
        return out if output_mask is None else (out, output_mask)

    def extra_repr(self) -> str:
        """The window, and what differs from a gaussian kernel."""
        window = self.window
        shown = f"kernel_size={window.kernel_size}, stride={window.stride}, padding={window.padding}"
        shown += "" if window.dilation == (1, 1) else f", dilation={window.dilation}"
        shown += ", ceil_mode=True" if self.ceil_mode else ""
        return shown + (", channel_wise=True" if self.channel_wise else "") + self._kernel_repr()
