"""Memory formats: what comes in channels-last goes out channels-last, as in `torch.nn.Conv2d`."""

from typing import Any, overload

import torch
from torch import Tensor


def channels_last(*tensors: Tensor) -> bool:
    """Whether one of some [B, C, H, W] tensors has its channels side by side; cut out of a wider one, too."""
    for x in tensors:  # no generator: this is asked at each call
        steps = x.stride()
        if steps[1] == 1 and steps[3] > 1:
            return True
    return False


def like(result: Tensor, *tensors: Tensor) -> Tensor:
    """A kernel's dense result, channels-last where one of the tensors it follows is: copied where it is not."""
    if not channels_last(*tensors) or result.is_contiguous(memory_format=torch.channels_last):
        return result
    if not (result.is_contiguous() and _is_turned(result)):
        return result.contiguous(memory_format=torch.channels_last)
    out = torch.empty_like(result, memory_format=torch.channels_last)
    _turn(result, out)
    return out


@overload
def contiguous(x: Tensor) -> Tensor: ...
@overload
def contiguous(x: None) -> None: ...
def contiguous(x: Tensor | None) -> Tensor | None:
    """`x.contiguous()`, for kernels; None for None."""
    if x is None or x.is_contiguous():
        return x
    if not (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and _is_turned(x)):
        return x.contiguous()
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _turn(out, x, back=True)
    return out


# PyTorch copies a matrix to its transpose up to 15 times faster than an image from one format to the other.
_LEAST = 60 * 60  # elements of such a matrix


def _is_turned(image: Tensor) -> bool:
    return image.is_cpu and image[:1].numel() >= _LEAST


def _turn(contiguous: Tensor, last: Tensor, *, back: bool = False) -> None:
    """Copy contiguous images to channels-last ones, or back, image by image."""
    for rows, columns in zip(contiguous.flatten(2), last.permute(0, 2, 3, 1).flatten(1, 2), strict=True):
        (rows if back else columns).copy_((columns if back else rows).t())


def strides(size: Any, *, last: bool) -> tuple[int, ...]:
    """Those of a dense tensor of a size, contiguous or, [B, C, H, W] alone, channels-last."""
    if last:
        _, c, h, w = size
        return h * w * c, 1, w * c, c
    steps, step = [], 1
    for n in reversed(size):
        steps.append(step)
        step = step * torch.sym_max(n, 1)  # as `new_empty` has it
    return tuple(reversed(steps))


def empty(size: Any, of: Tensor, *tensors: Tensor) -> Tensor:
    """A tensor of a size, and of the dtype and device of another, laid out as `like` has it."""
    return of.new_empty_strided(size, strides(size, last=channels_last(*tensors)))
