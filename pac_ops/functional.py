"""The operators as functions, with their argument checks and defaults."""

import torch
from torch import Tensor

from pac_ops import library
from pac_ops.geometry import Pair, Window

IntOrPair = int | tuple[int, int]


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

    Raises:
        TypeError: where an argument is of the wrong type.
        ValueError: where an argument has the wrong shape or value.
    """
    check_image("guide", guide)
    window = make_window(kernel_size, stride, padding, dilation)
    _check_output_size(window, guide.shape)
    result: Tensor = library.squared_distance2d(guide, *window)
    return result


def packernel2d(
    guide: Tensor,
    kernel_size: IntOrPair,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
) -> Tensor:
    """The gaussian adapting kernel K(f_i, f_j) = exp(-1/2 ||f_i - f_j||^2) of Su et al., CVPR 2019.

    Args, result and errors are those of `squared_distance2d`: [B, G, H, W] -> [B, 1, kh, kw, Ho, Wo], float32
    also for half-precision guides (float64 stays float64).
    """
    return torch.exp(-0.5 * squared_distance2d(guide, kernel_size, stride, padding, dilation))


def pacconv2d(
    input: Tensor,
    kernel: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    """Pixel-adaptive convolution: v'_i = sum_j K(f_i, f_j) W[p_i - p_j] v_j + b (Su et al., CVPR 2019, eq. 3).

    With K = 1 everywhere this is `torch.nn.functional.conv2d`. Under autocast, input, weight and bias are cast
    as the stock convolution's are, and K is left as it is.

    Args:
        input: v, [B, C, H, W].
        kernel: K, [B, 1, kh, kw, Ho, Wo], from `packernel2d` with the same window.
        weight: W, [O, C/groups, kh, kw], odd windows only.
        bias: [O] or None.
        stride: as in `torch.nn.Conv2d`.
        padding: as in `torch.nn.Conv2d`, "same" and "valid" included; zeros.
        dilation: as in `torch.nn.Conv2d`.
        groups: as in `torch.nn.Conv2d`.

    Returns:
        [B, O, Ho, Wo], contiguous, in the input's dtype; sums are taken in float32 or wider.

    Raises:
        TypeError: where an argument is of the wrong type.
        ValueError: where an argument has the wrong shape or value.
    """
    check_image("input", input)
    _check_tensor("kernel", kernel)
    _check_tensor("weight", weight)
    if bias is not None:
        _check_tensor("bias", bias)
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(f"groups must be a positive integer, got {groups!r}")
    others = {"kernel": kernel, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, x in others.items():
        if x.device != input.device:
            raise ValueError(f"{name} must be on the input's device {input.device}, got {x.device}")
    if weight.dim() != 4:
        raise ValueError(f"weight must be [O, C/groups, kh, kw], got {list(weight.shape)}")
    b, c = input.shape[:2]
    o = weight.shape[0]
    if c != weight.shape[1] * groups or o % groups:
        raise ValueError(
            f"weight must be [O, C/groups, kh, kw] with C = {c} and O divisible by groups = {groups}, "
            f"got {list(weight.shape)}"
        )
    if bias is not None and list(bias.shape) != [o]:
        raise ValueError(f"bias must be [{o}], got {list(bias.shape)}")
    window = make_window((weight.shape[2], weight.shape[3]), stride, padding, dilation)
    ho, wo = _check_output_size(window, input.shape)
    expected = [b, 1, *window.kernel_size, ho, wo]
    if list(kernel.shape) != expected:
        raise ValueError(
            f"kernel must be [B, 1, kh, kw, Ho, Wo] = {expected}, got {list(kernel.shape)}; "
            "make it with packernel2d from a guide of the input's height and width and the same window"
        )
    if not torch.is_autocast_enabled(input.device.type):
        for name, x in others.items():
            if name != "kernel" and x.dtype != input.dtype:
                raise TypeError(f"{name} must have the input's dtype {input.dtype}, got {x.dtype}")
    result: Tensor = library.pacconv2d(
        input, kernel, weight, bias, window.stride, window.padding, window.dilation, groups
    )
    return result


def make_window(kernel_size: IntOrPair, stride: IntOrPair, padding: IntOrPair | str, dilation: IntOrPair) -> Window:
    """The arguments of a `torch.nn.Conv2d`, checked and made explicit.

    Raises:
        TypeError: where an argument is neither an integer nor a pair of integers.
        ValueError: where a value is out of range, the window is even, or "same" meets a stride.
    """
    size = _pair("kernel_size", kernel_size, 1)
    if size[0] % 2 == 0 or size[1] % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that the window has a centre, got {size}")
    steps, spread = _pair("stride", stride, 1), _pair("dilation", dilation, 1)
    if isinstance(padding, str):
        if padding == "valid":
            margin = (0, 0)
        elif padding == "same":
            if steps != (1, 1):
                raise ValueError(f'padding="same" needs stride 1, got stride {steps}')
            margin = (spread[0] * (size[0] // 2), spread[1] * (size[1] // 2))
        else:
            raise ValueError(f'padding must be an integer, a pair, "same" or "valid", got {padding!r}')
    else:
        margin = _pair("padding", padding, 0)
    return Window(size, steps, margin, spread)


def _pair(name: str, value: IntOrPair, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise TypeError(f"{name} must be an integer or a pair of integers, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return pair[0], pair[1]


def _check_tensor(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype, got {x.dtype}")


def check_image(name: str, x: Tensor) -> None:
    """Refuse what is no floating [batch, channels, height, width] tensor.

    Raises:
        TypeError: where `x` is no tensor, or not floating.
        ValueError: where it has another rank.
    """
    _check_tensor(name, x)
    if x.dim() != 4:
        raise ValueError(f"{name} must be [batch, channels, height, width], got {list(x.shape)}")


def _check_output_size(window: Window, shape: torch.Size) -> Pair:
    ho, wo = window.output_size(shape[2], shape[3])
    if ho < 1 or wo < 1:
        raise ValueError(
            f"the window {window.kernel_size} with dilation {window.dilation} and padding {window.padding} "
            f"must fit the image, got {shape[2]} x {shape[3]}"
        )
    return ho, wo
