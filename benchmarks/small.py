"""A small map, where calls cost more than sums: 4 channels at 8 x 8, against the same in PyTorch's own operations."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import BOTH, FORWARD, Candidate, Case, Workload
from benchmarks.operators import UNFOLD, ours
from pac_ops import PacConv2d, pacconv2d, packernel2d

CALLS = 200  # in a time that is taken
LAYER, GIVEN = "small map, PacConv2d", "small map, pacconv2d"
WORKLOADS = [Workload(1, 4, 8, dtype=dtype) for dtype in (torch.float32, torch.float64)]


def _unfolded(x: Tensor, window: int) -> Tensor:
    taps: Tensor = F.unfold(x, window, padding=window // 2)
    return taps.view(x.shape[0], x.shape[1], window**2, x.shape[2], x.shape[3])


def _weighed(x: Tensor, kernel: Tensor, layer: PacConv2d) -> Tensor:
    assert layer.bias is not None
    adapted = _unfolded(x, 3) * kernel
    return torch.einsum("bckyx,ock->boyx", adapted, layer.weight.flatten(2)) + layer.bias[:, None, None]


def candidates(w: Workload, op: str, device: torch.device, *, backward: bool) -> Mapping[str, Candidate]:
    """The layer, or the convolution given K, with gradients to all that it is given and learns."""
    torch.manual_seed(0)
    shape = (w.batch, w.channels, w.size, w.size)
    x, guide, grad = (torch.randn(shape, dtype=w.dtype, device=device) for _ in range(3))
    layer = PacConv2d(w.channels, w.channels, w.window, padding=w.padding, dtype=w.dtype, device=device)
    steered = guide if op == LAYER else packernel2d(guide, None, w.window, padding=w.padding)[0]
    leaves = [tensor.requires_grad_(backward) for tensor in (x, steered, *layer.parameters())]
    forward: dict[str, Callable[[], Tensor]]
    if op == LAYER:
        forward = {
            ours(device, w.dtype): lambda: layer(x, guide),
            UNFOLD: lambda: _weighed(x, _gaussian(_unfolded(guide, w.window), guide), layer),
        }
    else:
        forward = {
            ours(device, w.dtype): lambda: pacconv2d(x, steered, layer.weight, layer.bias, padding=w.padding),
            UNFOLD: lambda: _weighed(x, steered.flatten(2, 3), layer),
        }
    own, other = (run().detach() for run in forward.values())
    torch.testing.assert_close(own, other)
    return {name: _called(run, leaves, grad, backward=backward) for name, run in forward.items()}


def _gaussian(taps: Tensor, guide: Tensor) -> Tensor:
    return torch.exp(-0.5 * (taps - guide[:, :, None]).square().sum(1, keepdim=True))


def _called(run: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor, *, backward: bool) -> Candidate:
    def once() -> None:
        with torch.set_grad_enabled(backward):
            out = run()
        if backward:
            torch.autograd.grad(out, leaves, grad)

    return once


def cases(device: torch.device) -> Iterator[Case]:
    """Both, forward and backward, in both dtypes."""
    for op in (LAYER, GIVEN):
        for w in WORKLOADS:
            for mode in (FORWARD, BOTH):
                make = partial(candidates, w, op, device, backward=mode == BOTH)
                yield Case(op, mode, w.id, make, dtype=w.dtype, calls=CALLS)
