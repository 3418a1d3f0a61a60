"""Memory formats: what comes in channels-last goes out channels-last, as in `torch.nn.Conv2d`."""

from typing import Any

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
    """A dense result, channels-last where one of the tensors it follows is: copied where it is not."""
    return result.contiguous(memory_format=torch.channels_last) if channels_last(*tensors) else result


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
