"""Checks of what callers pass: one line each, naming the argument, what it must be and what it was."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pac_ops.geometry import Pair, Window

IntOrPair = int | tuple[int, int]


def make_window(kernel_size: IntOrPair, stride: IntOrPair, padding: IntOrPair | str, dilation: IntOrPair) -> Window:
    """The arguments of a `torch.nn.Conv2d`, checked and made explicit.

    Raises:
        TypeError: where an argument is neither an integer nor a pair of integers.
        ValueError: where a value is out of range, the window is even, or "same" meets a stride.
    """
    size = pair("kernel_size", kernel_size, 1)
    if size[0] % 2 == 0 or size[1] % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that the window has a centre, got {size}")
    steps, spread = pair("stride", stride, 1), pair("dilation", dilation, 1)
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
        margin = pair("padding", padding, 0)
    return Window(size, steps, margin, spread)


def check_output_padding(output_padding: IntOrPair, window: Window) -> Pair:
    """The output padding of a transposed operator as a pair, by `torch.nn.ConvTranspose2d`'s rule.

    Raises:
        TypeError: where it is neither an integer nor a pair of integers.
        ValueError: where it reaches both the stride and the dilation.
    """
    extra = pair("output_padding", output_padding, 0)
    for e, s, d in zip(extra, window.stride, window.dilation, strict=True):
        if e >= s and e >= d:
            raise ValueError(
                f"output_padding must be smaller than the stride or the dilation, {s} and {d}, got {e}: each pixel "
                f"that F.pad(input, (0, columns, 0, rows)) adds is {s} of the output"
            )
    return extra


def pair(name: str, value: IntOrPair, least: int) -> Pair:
    """A (vertical, horizontal) pair of integers from an integer or a pair.

    Raises:
        TypeError: where it is neither.
        ValueError: where one is smaller than `least`.
    """
    if type(value) is int and value >= least:
        return value, value
    if type(value) is tuple and len(value) == 2:
        rows, columns = value
        if type(rows) is int and type(columns) is int and rows >= least and columns >= least:
            return value  # at once: a small map is convolved in the time that the rest takes
    whole = (int, torch.SymInt)  # an image's size under torch.export, where it is dynamic
    both = (value, value) if isinstance(value, whole) else tuple(value) if isinstance(value, (tuple, list)) else ()
    if len(both) != 2 or not all(isinstance(v, whole) for v in both):
        raise TypeError(f"{name} must be an integer or a pair of integers, got {value!r}")
    if min(both) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return both[0], both[1]


def check_tensor(name: str, x: Tensor) -> None:
    """Refuse anything but a tensor of a floating dtype.

    Raises:
        TypeError: where `x` is something else.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name} must have a floating dtype, got {x.dtype}")


def check_image(name: str, x: Tensor) -> None:
    """Refuse anything but a floating [batch, channels, height, width] tensor.

    Raises:
        TypeError: where `x` is no tensor, or not floating.
        ValueError: where it has another rank.
    """
    check_tensor(name, x)
    if x.dim() != 4:
        batched = f": write {name}[None]" if x.dim() == 3 else ""
        raise ValueError(f"{name} must be [batch, channels, height, width], got {list(x.shape)}{batched}")


def check_mask(
    mask: Tensor, batch: int, height: int, width: int, device: torch.device, owner: str = "guide"
) -> Tensor:
    """The mask, of any dtype, if it is [batch, 1, height, width] and on `device`; one for all images is expanded.

    Raises:
        TypeError: where it is no tensor.
        ValueError: where it has another shape or device.
    """
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
    shape = list(mask.shape)
    for_all = shape != [batch, 1, height, width]
    if for_all and shape != [1, 1, height, width]:
        raise ValueError(f"mask must be [B or 1, 1, H, W] = [{or_one(batch)}, 1, {height}, {width}], got {shape}")
    check_devices(device, {"mask": mask}, owner)
    return mask.expand(batch, -1, -1, -1) if for_all else mask


def or_one(batch: int) -> str:
    """How many images a tensor may be of that can serve a whole batch."""
    return "1" if batch == 1 else f"{batch} or 1"


def check_devices(device: torch.device, others: Mapping[str, Tensor], owner: str = "input") -> None:
    """Refuse tensors on another device than the one `owner` is on.

    Raises:
        ValueError: naming the first that is.
    """
    for name, x in others.items():
        if x.device != device:
            raise ValueError(f"{name} must be on the {owner}'s device {device}, got {x.device}")


def check_fits(window: Window, height: int, width: int) -> Pair:
    """The output size of a window on an image.

    Raises:
        ValueError: where the window does not fit the image.
    """
    ho, wo = window.output_size(height, width)
    if ho < 1 or wo < 1:
        raise ValueError(
            f"the window {window.kernel_size} with dilation {window.dilation} and padding {window.padding} "
            f"must fit the image, got {height} x {width}"
        )
    return ho, wo


def check_no_word(padding: Any) -> IntOrPair:
    """Padding of an operator that has no "same" and "valid".

    Raises:
        TypeError: where it is a word.
    """
    if isinstance(padding, str):
        raise TypeError(f"padding must be an integer or a pair of integers, got {padding!r}")
    both: IntOrPair = padding
    return both
