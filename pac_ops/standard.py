"""The forward of every operator in plain PyTorch operations, for exporters: their files run without pac_ops.

Any size may be unknown when they are traced. They are the oracle's, but for the convolutions: taps are gathered in
one tensor and multiplied by the weight as a 1 x 1 convolution, a product that every runtime does well.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops import area
from pac_ops.backends import reference
from pac_ops.geometry import Window, all_taps, spread
from pac_ops.library.operators import OPERATORS, OR_PLAIN, Operator, window_of

Ints = Sequence[int]


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """A decomposition table for `torch.export.ExportedProgram.run_decompositions`: no operator of pac_ops is left.

    Results agree with the operators' up to rounding. There are no gradients: it is for inference.
    """
    table: dict[Any, Callable[..., Tensor]] = {}
    for operator in OPERATORS:
        table[getattr(torch.ops.pac_ops, operator.name).default] = partial(_computed, operator)
    for name, written in (("pacconv2d", _pacconv2d), ("pacconv_transpose2d", _pacconv_transpose2d)):
        table[getattr(torch.ops.pac_ops, name).default] = written
        table[getattr(torch.ops.pac_ops, f"{name}{OR_PLAIN}").default] = partial(_whether_open_or_not, written)
    aten = torch.ops.aten  # operators that networks call: exporters take the example's sizes for granted in these
    table |= dict.fromkeys(
        (aten.adaptive_avg_pool2d.default, aten._adaptive_avg_pool2d.default), _adaptive_avg_pool2d
    )
    return table | {
        aten.adaptive_avg_pool1d.default: _adaptive_avg_pool1d,
        aten.upsample_nearest2d.vec: _upsample_nearest2d,
    }


def _computed(operator: Operator, *arguments: Any) -> Tensor:
    """The result of an operator, by the oracle."""
    result: Tensor = getattr(reference, operator.name)(*operator.for_backend(*arguments))
    return result


def _whether_open_or_not(written: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """An operator that may be PyTorch's own where K is 1: the same up to rounding."""
    *tensors, _, stride, padding, dilation, groups = arguments
    return written(*tensors, stride, padding, dilation, groups)


def _pacconv2d(input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    *sliding, groups = window
    return _convolved(input, kernel, weight, bias, window_of(weight.shape[2:], *sliding), groups)


def _pacconv_transpose2d(input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
    *sliding, groups = window
    spaced = window_of(weight.shape[2:], *sliding)
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
    stepping = Window(spaced.kernel_size, dilation=spaced.dilation)
    return _convolved(spread(input, spaced, kernel.shape[4], kernel.shape[5]), kernel, turned, bias, stepping, groups)


def _convolved(
    input: Tensor, kernel: Tensor, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Tensor:
    adapted = all_taps(input, window).flatten(2, 3) * kernel.flatten(2, 3)  # [B, C, taps, Ho, Wo]
    filters = weight.flatten(1)[:, :, None, None]  # [O, C/groups * taps, 1, 1]
    return F.conv2d(adapted.flatten(1, 2).to(weight.dtype), filters, bias, groups=groups).to(input.dtype)


def _adaptive_avg_pool2d(input: Tensor, output_size: Ints) -> Tensor:
    if all(isinstance(n, int) and n == 1 for n in output_size):
        return input.mean(dim=(-2, -1), keepdim=True)
    return area.by_matrices(input, output_size).to(input.dtype)


def _adaptive_avg_pool1d(input: Tensor, output_size: Ints) -> Tensor:
    return _adaptive_avg_pool2d(input[..., None, :], (1, output_size[0])).squeeze(-2)


def _upsample_nearest2d(input: Tensor, output_size: Ints | None, scale_factors: Sequence[float] | None) -> Any:
    """By PyTorch's indices: runtimes round the ratio of two sizes otherwise, and read a neighbouring pixel."""
    if output_size is None:
        return NotImplemented  # a factor is written as it is
    rows, columns = (_nearest(n, wanted, input) for n, wanted in zip(input.shape[-2:], output_size, strict=True))
    return input.index_select(2, rows).index_select(3, columns)


def _nearest(n: int, wanted: int, like: Tensor) -> Tensor:
    """The pixel that each of `wanted` is a copy of: floor(i n / wanted), in float32."""
    length, parts = (torch.full((), x, dtype=torch.float32, device=like.device) for x in (n, wanted))
    places = torch.arange(wanted, dtype=torch.float32, device=like.device) * (length / parts)
    return places.floor().clamp_max(n - 1).long()
