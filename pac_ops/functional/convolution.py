"""Pixel-adaptive convolution, transposed convolution and pooling."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops import library
from pac_ops.arguments import (
    IntOrPair,
    check_devices,
    check_fits,
    check_image,
    check_no_word,
    check_output_padding,
    check_tensor,
    make_window,
    or_one,
    pair,
)
from pac_ops.dtypes import autocast_dtype
from pac_ops.geometry import Pair, Window
from pac_ops.published import NATIVE_IMPL, answers
from pac_ops.settled import settled

Sliding = tuple[Pair, Pair, Pair]


@answers(native_impl=NATIVE_IMPL)
def pacconv2d(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    shared_filters: bool = False,
    gate: Tensor | None = None,
) -> Tensor:
    """Pixel-adaptive convolution: v'_i = sum_j K(f_i, f_j) W[p_i - p_j] v_j + b (Su et al., CVPR 2019, eq. 3).

    With K = 1 everywhere this is `torch.nn.functional.conv2d`. Under autocast, input, weight and bias are cast
    as the stock convolution's are, and K is left as it is.

    Args:
        input: v, [B, C, H, W].
        kernel: K, [B, 1, kh, kw, Ho, Wo], from `packernel2d` with the same window; B may be 1, for all images.
        weight: W, [O, C/groups, kh, kw], odd windows only; [1, 1, kh, kw] with `shared_filters`.
        bias: [O] or None.
        stride: as in `torch.nn.Conv2d`.
        padding: as in `torch.nn.Conv2d`, "same" and "valid" included; zeros.
        dilation: as in `torch.nn.Conv2d`.
        groups: as in `torch.nn.Conv2d`.
        shared_filters: one filter, applied to every channel by itself.
        gate: a, [] or [n]: K' = 1 + a (K - 1) takes K's place, each a for O/n of the output channels, in order. Where
            all are 0 the result is that of `torch.nn.functional.conv2d` to the last bit, and `gate` has a gradient
            all the same. Several take a plain convolution more.

    Returns:
        [B, O, Ho, Wo] in the input's dtype, channels-last where input or weight is; summed in float32 or wider.
    """
    tensors = (input, kernel, weight, bias, gate)
    sliding, for_all = settled(_checked, tensors, stride, padding, dilation, groups, shared_filters)
    if for_all:
        kernel = kernel.expand(input.shape[0], -1, -1, -1, -1, -1)
    if shared_filters:
        return _plus(_pooled(input, kernel, weight, sliding), bias)
    if gate is None:
        result: Tensor = library.pacconv2d(input, kernel, weight, bias, *sliding, groups)
        return result
    if gate.numel() == 1:
        opened, kernel = _opened(kernel, gate)
        out: Tensor = library.pacconv2d_or_plain(input, kernel, weight, bias, opened, *sliding, groups)
        return out
    change: Tensor = library.pacconv2d(input, kernel - 1, weight, None, *sliding, groups)
    return F.conv2d(input, weight, bias, *sliding, groups) + _by_channel(gate, change) * change


@answers(native_impl=NATIVE_IMPL)
def pacconv_transpose2d(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair = 0,
    output_padding: IntOrPair = 0,
    groups: int = 1,
    dilation: IntOrPair = 1,
    shared_filters: bool = False,
    gate: Tensor | None = None,
) -> Tensor:
    """Pixel-adaptive transposed convolution (Su et al., CVPR 2019, section 4.1: guided upsampling).

    The same as inserting stride - 1 zeros between the input's pixels, padding, and applying `pacconv2d` with
    stride 1, but no zero is multiplied. With K = 1 everywhere this is `torch.nn.functional.conv_transpose2d`.

    Args:
        input: v, [B, C, H, W].
        kernel: K, [B, 1, kh, kw, Ho, Wo], of the *output's* size: from `packernel2d` with `transposed=True`; B may
            be 1, for all images.
        weight: W, [C, O/groups, kh, kw], odd windows only; [1, 1, kh, kw] with `shared_filters`.
        bias: [O] or None.
        stride: as in `torch.nn.ConvTranspose2d`.
        padding: as in `torch.nn.ConvTranspose2d`.
        output_padding: as in `torch.nn.ConvTranspose2d`.
        groups: as in `torch.nn.ConvTranspose2d`.
        dilation: as in `torch.nn.ConvTranspose2d`.
        shared_filters: one filter, applied to every channel by itself.
        gate: see `pacconv2d`.

    Returns:
        [B, O, Ho, Wo] in the input's dtype, channels-last where input or weight is; summed in float32 or wider.
    """
    options = (stride, padding, output_padding, dilation, groups, shared_filters)
    sliding, for_all = settled(_checked_transposed, (input, kernel, weight, bias, gate), *options)
    if for_all:
        kernel = kernel.expand(input.shape[0], -1, -1, -1, -1, -1)
    if shared_filters:
        groups = input.shape[1]
        weight = weight.expand(groups, -1, -1, -1)
    if gate is None:
        result: Tensor = library.pacconv_transpose2d(input, kernel, weight, bias, *sliding, groups)
        return result
    if gate.numel() == 1:
        opened, kernel = _opened(kernel, gate)
        out: Tensor = library.pacconv_transpose2d_or_plain(input, kernel, weight, bias, opened, *sliding, groups)
        return out
    change: Tensor = library.pacconv_transpose2d(input, kernel - 1, weight, None, *sliding, groups)
    stride, padding, dilation = sliding
    extra = pair("output_padding", output_padding, 0)
    plain = F.conv_transpose2d(input, weight, bias, stride, padding, extra, groups, dilation)
    return plain + _by_channel(gate, change) * change


@answers(native_impl=NATIVE_IMPL)
def pacpool2d(
    input: Tensor,
    kernel: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair | None = 1,
    padding: IntOrPair = 0,
    dilation: IntOrPair = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Pixel-adaptive pooling: v'_i = sum_j K(f_i, f_j) v_j (Su et al., CVPR 2019, section 3).

    With K made by `packernel2d` from a constant guide with `normalize_kernel=True` this is
    `torch.nn.functional.avg_pool2d` with `count_include_pad=False`.

    Args:
        input: v, [B, C, H, W].
        kernel: K, [B, 1, kh, kw, Ho, Wo], or [B, C, kh, kw, Ho, Wo] for one a channel; B may be 1, for all images.
        kernel_size: the window, odd in both directions.
        stride: as in `torch.nn.AvgPool2d`, None for the kernel size; by default 1.
        padding: as in `torch.nn.AvgPool2d`; zeros, of any width.
        dilation: as in `torch.nn.MaxPool2d`.
        ceil_mode: as in `torch.nn.AvgPool2d`.

    Returns:
        [B, C, Ho, Wo] in the input's dtype, channels-last where it is; summed in float32 or wider.
    """
    check_image("input", input)
    check_tensor("kernel", kernel)
    check_devices(input.device, {"kernel": kernel})
    window = make_window(kernel_size, kernel_size if stride is None else stride, check_no_word(padding), dilation)
    if ceil_mode:
        extra = window.ceil_padding(input.shape[2], input.shape[3])
        input = F.pad(input, (0, extra[1], 0, extra[0])) if extra != (0, 0) else input
    _, _, height, width = input.shape
    if _is_for_all(kernel, input, window, check_fits(window, height, width), channels=True):
        kernel = kernel.expand(input.shape[0], -1, -1, -1, -1, -1)
    result: Tensor = library.pacpool2d(input, kernel, window.stride, window.padding, window.dilation)
    return result


def _checked(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    stride: IntOrPair,
    padding: IntOrPair | str,
    dilation: IntOrPair,
    groups: int,
    shared_filters: bool,
) -> tuple[Sliding, bool]:
    """Stride, padding and dilation of `pacconv2d`, and whether K is one for all images."""
    c, out_channels = _check_conv(input, kernel, weight, bias, groups, shared_filters, "[O, C/groups, kh, kw]")
    if not shared_filters and (c != weight.shape[1] * groups or out_channels % groups):
        raise ValueError(
            f"weight must be [O, C/groups, kh, kw] with C = {c} and O divisible by groups = {groups}, "
            f"got {list(weight.shape)}"
        )
    window = make_window((weight.shape[2], weight.shape[3]), stride, padding, dilation)
    for_all = _is_for_all(kernel, input, window, check_fits(window, input.shape[2], input.shape[3]))
    if gate is not None:
        _check_gate(gate, input, out_channels, shared_filters)
    return (window.stride, window.padding, window.dilation), for_all


def _checked_transposed(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    stride: IntOrPair,
    padding: IntOrPair,
    output_padding: IntOrPair,
    dilation: IntOrPair,
    groups: int,
    shared_filters: bool,
) -> tuple[Sliding, bool]:
    """Stride, padding and dilation of `pacconv_transpose2d`, and whether K is one for all images."""
    c, out_channels = _check_conv(
        input, kernel, weight, bias, groups, shared_filters, "[C, O/groups, kh, kw]", groups
    )
    if not shared_filters and (c != weight.shape[0] or c % groups):
        raise ValueError(
            f"weight must be [C, O/groups, kh, kw] with C = {c}, divisible by groups = {groups}, "
            f"got {list(weight.shape)}"
        )
    window = make_window((weight.shape[2], weight.shape[3]), stride, check_no_word(padding), dilation)
    extra = check_output_padding(output_padding, window)
    size = window.transposed_size(input.shape[2], input.shape[3], extra)
    if min(size) < 1:
        raise ValueError(f"the padding {window.padding} must leave an output, got one of {size[0]} x {size[1]}")
    for_all = _is_for_all(kernel, input, window, size)
    if gate is not None:
        _check_gate(gate, input, out_channels, shared_filters)
    return (window.stride, window.padding, window.dilation), for_all


def _check_gate(gate: Tensor, input: Tensor, out_channels: int, shared_filters: bool) -> None:
    check_tensor("gate", gate)
    check_devices(input.device, {"gate": gate})
    if shared_filters:
        raise ValueError("gate must be None with shared_filters=True")
    if gate.dim() > 1 or not gate.numel() or out_channels % gate.numel():
        raise ValueError(f"gate must be [] or [n], n a divisor of the {out_channels} outputs, got {list(gate.shape)}")


def _opened(kernel: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Whether a is not 0, and 1 + a (K - 1): exactly 1 where a is 0 or K is 1."""
    number = gate.reshape(()).to(kernel.dtype)
    return gate.detach().reshape(()) != 0, torch.lerp(torch.ones_like(number), kernel, number)


def _by_channel(gate: Tensor, out: Tensor) -> Tensor:
    """One number for each channel of an output, [O, 1, 1], in its dtype."""
    return gate.to(out.dtype).repeat_interleave(out.shape[1] // gate.numel())[:, None, None]


def _pooled(input: Tensor, kernel: Tensor, weight: Tensor, sliding: Sliding) -> Tensor:
    """A filter shared by all channels is part of K."""
    narrow = autocast_dtype(input.device.type)
    if narrow is not None and input.dtype != torch.float64:
        input = input.to(narrow)  # as the other convolutions' input
    filters = weight.to(kernel.dtype)[..., None, None]  # [1, 1, kh, kw, 1, 1]
    result: Tensor = library.pacpool2d(input, kernel * filters, *sliding)
    return result


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)[:, None, None]


def _check_conv(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    shared_filters: bool,
    weight_shape: str,
    out_groups: int | None = None,
) -> tuple[int, int]:
    """Checks that both convolutions share; the numbers of input and output channels."""
    check_image("input", input)
    check_tensor("kernel", kernel)
    check_tensor("weight", weight)
    if bias is not None:
        check_tensor("bias", bias)
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups must be a positive integer, got {groups!r}")
    others = {"kernel": kernel, "weight": weight}
    if bias is not None:
        others["bias"] = bias
    check_devices(input.device, others)
    if weight.dim() != 4:
        raise ValueError(f"weight must be {weight_shape}, got {list(weight.shape)}")
    c, filters = input.shape[1], weight.shape
    if shared_filters:
        if groups != 1:
            raise ValueError(f"groups must be 1 with shared_filters=True, got {groups}")
        if list(filters[:2]) != [1, 1]:
            raise ValueError(f"weight must be [1, 1, kh, kw] with shared_filters=True, got {list(weight.shape)}")
        out_channels = c
    else:
        out_channels = filters[0] if out_groups is None else filters[1] * out_groups
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != out_channels):
        raise ValueError(f"bias must be [{out_channels}], got {list(bias.shape)}")
    if autocast_dtype(input.device.type) is None:
        dtype = input.dtype
        for name, x in others.items():
            if x.dtype != dtype and name != "kernel":
                raise TypeError(f"{name} must have the input's dtype {dtype}, got {x.dtype}")
    return c, out_channels


def _is_for_all(kernel: Tensor, input: Tensor, window: Window, size: Pair, *, channels: bool = False) -> bool:
    """Whether K, if it is the window's, is one for all images of several."""
    b, c, _, _ = input.shape
    rest = [*window.kernel_size, *size]
    shape = list(kernel.shape)
    if shape == [b, 1, *rest] or (channels and shape == [b, c, *rest]):
        return False
    if shape == [1, 1, *rest] or (channels and shape == [1, c, *rest]):
        return True
    width = f"1 or {c}" if channels else "1"
    raise ValueError(
        f"kernel must be [B or 1, {'1 or C' if channels else '1'}, kh, kw, Ho, Wo] = "
        f"[{or_one(b)}, {width}, {', '.join(map(str, rest))}], got {shape}; make it with packernel2d from a guide of "
        "the same size and the same window"
    )
