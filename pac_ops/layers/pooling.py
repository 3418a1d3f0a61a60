"""Pooling as a layer."""

import torch
from torch import Tensor

from pac_ops.arguments import (
    IntOrPair,
    make_window,
    pair,
)
from pac_ops.functional.convolution import pacpool2d
from pac_ops.layers.adapting import AdaptingLayer, Device, Result, check_call
from pac_ops.published import INPUT_2D, INPUT_FOR_KERNEL, NATIVE_IMPL, answers


class PacPool2d(AdaptingLayer):
    """Pixel-adaptive pooling (Su et al., CVPR 2019, section 3): v'_i = sum_j K(f_i, f_j) v_j.

    Arguments and sizes are `torch.nn.AvgPool2d`'s (and `torch.nn.MaxPool2d`'s dilation), but that `stride` is 1 by
    default, as published, and the kernel size where it is None; windows must be odd. With `normalize_kernel=True` and
    a constant guide it is average pooling with `count_include_pad=False`. It is called and masked as `PacConv2d`.

    With `channel_wise` each channel has its own kernel, from the guide's channel of the same number: the guide then
    has the input's channels. `channels`, with it and a learnable `inv_` kernel, makes `inv_alpha` and `inv_lambda`
    one number a channel.

    Shapes: input [B, C, H, W], guide [B, G, H, W], kernel [B, 1 or C, kh, kw, Ho, Wo] -> [B, C, Ho, Wo].

    Raises:
        TypeError: where neither or both of guide and kernel are given, or one is no tensor.
        ValueError: where a shape or an option does not fit.
    """

    @answers(native_impl=NATIVE_IMPL)
    def __init__(
        self,
        kernel_size: IntOrPair,
        stride: IntOrPair | None = 1,
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

    @answers(input_2d=INPUT_2D, input_for_kernel=INPUT_FOR_KERNEL)
    def forward(
        self, input: Tensor, guide: Tensor | None = None, kernel: Tensor | None = None, mask: Tensor | None = None
    ) -> Result:
        """Apply the layer; see the class."""
        seen, mask = check_call(input, guide, kernel, mask)
        if guide is not None and self.channel_wise and guide.shape[1] != input.shape[1]:
            raise ValueError(
                f"guide must have the input's {input.shape[1]} channels with channel_wise=True, got {guide.shape[1]}"
            )
        window = self.window
        options = {"ceil_mode": self.ceil_mode, "channel_wise": self.channel_wise}
        kernel, output_mask = self._kernel(guide, kernel, mask, window, **options)
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
        return shown + (", channel_wise=True" if self.channel_wise else "") + super().extra_repr()
