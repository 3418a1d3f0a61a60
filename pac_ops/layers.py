"""The operators as layers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pac_ops.functional import IntOrPair, check_image, make_window, pacconv2d, packernel2d
from pac_ops.geometry import Pair, Window


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


class PacConv2d(nn.Conv2d):
    """Pixel-adaptive convolution (Su et al., CVPR 2019) with `torch.nn.Conv2d`'s arguments, weights and sizes.

    Called with a guide of the input's height and width, `layer(input, guide)`, or with an adapting kernel made
    beforehand, `layer(input, None, kernel)`. With a constant guide it computes exactly what the `nn.Conv2d`
    with the same weights computes. A `padding_mode` other than "zeros" pads the guide the same way, so that
    every tap counts. Windows must be odd.

    Shapes: input [B, C, H, W], guide [B, G, H, W] with any G, kernel [B, 1, kh, kw, Ho, Wo] -> [B, O, Ho, Wo].

    Raises:
        TypeError: where neither or both of guide and kernel are given, or one is no tensor.
        ValueError: where a shape does not fit.
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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        make_window(kernel_size, stride, padding, dilation)  # checked before anything is allocated
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type] # a literal in torch, checked there
            device,
            dtype,
        )

    def forward(self, input: Tensor, guide: Tensor | None = None, kernel: Tensor | None = None) -> Tensor:
        """Apply the layer; see the class."""
        if (guide is None) == (kernel is None):
            raise TypeError("give either a guide or a kernel: layer(input, guide) or layer(input, None, kernel)")
        check_image("input", input)
        if guide is not None:
            kernel = self.adapting_kernel(input, guide)
        assert kernel is not None  # noqa: S101 (for the type checker)
        window = window_of(self)
        padded, padding = pad_as(self.padding_mode, input, window.padding)
        return pacconv2d(padded, kernel, self.weight, self.bias, window.stride, padding, window.dilation, self.groups)

    def adapting_kernel(self, input: Tensor, guide: Tensor) -> Tensor:
        """K of this layer's window for this input: [B, 1, kh, kw, Ho, Wo]."""
        check_image("guide", guide)
        if guide.device != input.device:
            raise ValueError(f"guide must be on the input's device {input.device}, got {guide.device}")
        if guide.shape[0] != input.shape[0] or guide.shape[2:] != input.shape[2:]:
            raise ValueError(
                "guide must be [B, G, H, W] with the input's batch, height and width, "
                f"[{input.shape[0]}, G, {input.shape[2]}, {input.shape[3]}], got {list(guide.shape)}"
            )
        window = window_of(self)
        padded, padding = pad_as(self.padding_mode, guide, window.padding)
        return packernel2d(padded, window.kernel_size, window.stride, padding, window.dilation)
