"""PAC on the CPU against the stock convolution, unfold + einsum, and torchvision's deformable convolution."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

import pac_ops
from benchmarks.harness import Candidate, Row, Workload, measure, rows

QUICK = [Workload(1, 64, 128), Workload(1, 256, 64), Workload(1, 512, 32)]
ALL = [*QUICK, Workload(1, 64, 256), Workload(1, 128, 128), Workload(1, 256, 128), Workload(1, 512, 64)]
ALL += [Workload(8, 256, 64), Workload(1, 21, 500, window=5, dilation=16)]
GUIDE_CHANNELS = 128
OURS, CONV, CONV_LAST, UNFOLD, DEFORM = (
    "pac_ops cpu",
    "conv",
    "conv channels-last",
    "unfold + einsum",
    "deform_conv2d",
)
CONVS = (CONV, CONV_LAST)


def convolution(workload: Workload, *, backward: bool) -> dict[str, Candidate]:
    """One layer given K, as each candidate computes it; with gradients to input, K, weight and bias."""
    w = workload
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_(backward)

    x, bias = leaf(w.batch, w.channels, w.size, w.size), leaf(w.channels)
    weight = leaf(w.channels, w.channels, w.window, w.window)
    guide = torch.randn(w.batch, 8, w.size, w.size, generator=generator)
    kernel = pac_ops.packernel2d(guide / 4, None, w.window, w.stride, w.padding, dilation=w.dilation)[
        0
    ].requires_grad_(backward)
    x_last, weight_last = (
        t.detach().to(memory_format=torch.channels_last).requires_grad_(backward) for t in (x, weight)
    )
    ho, wo = kernel.shape[-2:]
    offset = torch.zeros(w.batch, 2 * w.window**2, ho, wo)
    geometry = (w.stride, w.padding, w.dilation)

    def unfold() -> Tensor:
        taps: Tensor = F.unfold(x, w.window, w.dilation, w.padding, w.stride)
        adapted = taps.view(w.batch, w.channels, w.window, w.window, ho, wo) * kernel
        return torch.einsum("bcijyx,ocij->boyx", adapted, weight) + bias[:, None, None]

    forward = {
        OURS: lambda: pac_ops.pacconv2d(x, kernel, weight, bias, *geometry),
        CONV: lambda: F.conv2d(x, weight, bias, *geometry),
        CONV_LAST: lambda: F.conv2d(x_last, weight_last, bias, *geometry),
        UNFOLD: unfold,
        DEFORM: lambda: deform_conv2d(x, offset, weight, bias, *geometry, mask=kernel.flatten(1, 3)),
    }
    with torch.no_grad():
        expected = forward[UNFOLD]()
        for name in (OURS, DEFORM):
            torch.testing.assert_close(forward[name](), expected, rtol=1e-3, atol=1e-3)
    if not backward:
        return forward
    gradient = torch.randn(expected.shape, generator=generator)
    return {name: _with_backward(run, gradient) for name, run in forward.items()}


def _with_backward(run: Candidate, gradient: Tensor) -> Candidate:
    def both() -> None:
        out = run()
        assert isinstance(out, Tensor)
        out.backward(gradient)

    return both


def adapting_kernel(workload: Workload, *, backward: bool) -> dict[str, Candidate]:
    """K from a guide of 128 channels, and the convolution of the workload's channels that it serves."""
    w = workload
    guide = torch.randn(w.batch, GUIDE_CHANNELS, w.size, w.size).requires_grad_(backward)
    x = torch.randn(w.batch, w.channels, w.size, w.size).requires_grad_(backward)
    weight = torch.randn(w.channels, w.channels, w.window, w.window).requires_grad_(backward)

    def unfold() -> Tensor:
        shape = (w.batch, GUIDE_CHANNELS, w.window**2, w.size, w.size)
        taps: Tensor = F.unfold(guide, w.window, padding=w.padding)
        return torch.exp(-0.5 * (taps.view(shape) - guide[:, :, None]).square().sum(1))

    forward: dict[str, Candidate] = {
        OURS: lambda: pac_ops.packernel2d(guide, None, w.window, padding=w.padding)[0],
        UNFOLD: unfold,
        CONV: lambda: F.conv2d(x, weight, padding=w.padding),
    }
    if not backward:
        return forward
    gradients = {name: torch.randn_like(run()) for name, run in forward.items()}  # type: ignore[call-overload]
    return {name: _with_backward(run, gradients[name]) for name, run in forward.items()}


def run(workloads: list[Workload], rounds: int) -> Iterator[list[Row]]:
    """All measurements, workload by workload."""
    for op, make in (("pacconv2d", convolution), ("packernel2d", adapting_kernel)):
        for workload in workloads:
            for backward in (False, True):
                mode = "forward+backward" if backward else "forward"
                with torch.set_grad_enabled(backward):
                    candidates = make(workload, backward=backward)
                    yield rows(op, mode, workload, measure(candidates, rounds=rounds))
