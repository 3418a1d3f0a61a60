"""Batch normalisation over all processes' batches, as one process would compute it.

Otherwise each process normalises by the few images of its own share, and two processes train another network than
one. torch's SyncBatchNorm has to take a layer's place and runs on GPUs alone; this is for whatever layer calls
`torch.nn.functional.batch_norm`, subclasses with an activation inside among them, on any device.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class OverProcesses(TorchFunctionMode):
    """A mode in which batch norms in training take mean and variance over all processes' batches.

    Every process must make the same calls in the same order. Gradients are those of the sum of the processes' losses.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Torch calls this for each of its functions."""
        computed = _batch_norm if func is F.batch_norm else func
        return computed(*args, **(kwargs or {}))


class _Sum(torch.autograd.Function):
    """The sum over processes, with gradients to all of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 (torch gives it)
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.forward(ctx, grad)


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` over all processes: the mean first, then deviations from it, which loses no digits."""
    if not training:
        return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    x = input.float() if input.dtype.itemsize < torch.float32.itemsize else input
    dims = [dim for dim in range(x.dim()) if dim != 1]
    pixels = x.new_tensor([x.numel() // x.shape[1]])  # of each channel, in this process
    *sums, count = _Sum.apply(torch.cat((x.sum(dims), pixels))).split([x.shape[1], 1])
    mean = sums[0] / count
    centred = x - _of_channels(mean, x)
    variance = _Sum.apply(centred.square().sum(dims)) / count
    with torch.no_grad():
        for running, now in ((running_mean, mean), (running_var, variance * (count / (count - 1)))):
            if running is not None:
                running.lerp_(now.to(running.dtype), momentum)
    scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
    normalised = centred * _of_channels(scale, x)
    return (normalised if bias is None else normalised + _of_channels(bias, x)).to(input.dtype)


def _of_channels(values: Tensor, x: Tensor) -> Tensor:
    """Shape [C] to broadcast over [B, C, ...]."""
    return values.view(-1, *[1] * (x.dim() - 2))
