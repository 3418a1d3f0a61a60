"""PAC on the CPU against the stock convolutions, unfold + einsum, deformable convolution, and zero-insertion."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

import pac_ops
from benchmarks.harness import Candidate, Row, Workload, measure, rows

QUICK = [Workload(1, 64, 128), Workload(1, 256, 64), Workload(1, 512, 32)]
SHAPES = [(64, 256), (128, 128), (256, 64), (256, 128), (512, 32), (512, 64)]
ALL = [Workload(batch, *shape) for batch in (1, 8) for shape in SHAPES]
ALL += [
    Workload(1, 21, 500, window=5, dilation=16),
    Workload(1, 128, 128, stride=2),
    Workload(1, 96, 56, window=7, groups=96),
    Workload(1, 256, 56, groups=32),
]
GUIDE_CHANNELS = 128
OURS, CONV, CONV_LAST, UNFOLD, DEFORM = (
    f"pac_ops {pac_ops.backends.choose(torch.zeros(1))}",
    "conv",
    "conv channels-last",
    "unfold + einsum",
    "deform_conv2d",
)
CONVS = (CONV, CONV_LAST)
INSERTED = "zeros inserted, pacconv2d"
OPS = ("pacconv2d", "packernel2d", "pacconv_transpose2d")


def convolution(workload: Workload, *, backward: bool) -> dict[str, Candidate]:
    """One layer given K, as each candidate computes it; with gradients to input, K, weight and bias."""
    w = workload
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).requires_grad_(backward)

    x, bias = leaf(w.batch, w.channels, w.size, w.size), leaf(w.channels)
    weight = leaf(w.channels, w.channels // w.groups, w.window, w.window)
    guide = torch.randn(w.batch, 8, w.size, w.size, generator=generator)
    kernel, _ = pac_ops.packernel2d(guide / 4, None, w.window, w.stride, w.padding, dilation=w.dilation)
    kernel.requires_grad_(backward)
    x_last, weight_last = (
        t.detach().to(memory_format=torch.channels_last).requires_grad_(backward) for t in (x, weight)
    )
    ho, wo = kernel.shape[-2:]
    offset = torch.zeros(w.batch, 2 * w.window**2, ho, wo)
    geometry = (w.stride, w.padding, w.dilation)

    def unfold() -> Tensor:
        taps: Tensor = F.unfold(x, w.window, w.dilation, w.padding, w.stride)
        adapted = taps.view(w.batch, w.channels, w.window, w.window, ho, wo) * kernel
        by_group = adapted.unflatten(1, (w.groups, -1))
        filters = weight.unflatten(0, (w.groups, -1))
        return torch.einsum("bgcijyx,gocij->bgoyx", by_group, filters).flatten(1, 2) + bias[:, None, None]

    forward = {
        OURS: lambda: pac_ops.pacconv2d(x, kernel, weight, bias, *geometry, w.groups),
        CONV: lambda: F.conv2d(x, weight, bias, *geometry, w.groups),
        CONV_LAST: lambda: F.conv2d(x_last, weight_last, bias, *geometry, w.groups),
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


def transposed(workload: Workload, *, backward: bool) -> dict[str, Candidate]:
    """Guided upsampling by 2 with a 5 x 5 window, as inserting zeros and applying PAC computes it too."""
    w = workload
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(w.batch, w.channels, w.size, w.size, generator=generator).requires_grad_(backward)
    weight = torch.randn(w.channels, w.channels, 5, 5, generator=generator).requires_grad_(backward)
    guide = torch.randn(w.batch, 8, 2 * w.size, 2 * w.size, generator=generator)
    kernel, _ = pac_ops.packernel2d(guide / 4, None, 5, 2, 2, 1, transposed=True)
    kernel.requires_grad_(backward)

    def inserted() -> Tensor:
        spaced = x.new_zeros(w.batch, w.channels, 2 * w.size, 2 * w.size)
        spaced[:, :, ::2, ::2] = x
        turned = weight.transpose(0, 1).flip(2, 3).contiguous()
        return pac_ops.pacconv2d(spaced, kernel, turned, padding=2)

    forward: dict[str, Candidate] = {
        OURS: lambda: pac_ops.pacconv_transpose2d(x, kernel, weight, None, 2, 2, 1),
        INSERTED: inserted,
        CONV: lambda: F.conv_transpose2d(x, weight, None, 2, 2, 1),
    }
    with torch.no_grad():
        expected = inserted()
        torch.testing.assert_close(forward[OURS](), expected, rtol=1e-3, atol=1e-3)
    if not backward:
        return forward
    gradient = torch.randn(expected.shape, generator=generator)
    return {name: _with_backward(run, gradient) for name, run in forward.items()}


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
    plain = [w for w in workloads if (w.stride, w.dilation, w.groups, w.batch) == (1, 1, 1, 1)]
    for op, make, shapes in (
        ("pacconv2d", convolution, workloads),
        ("packernel2d", adapting_kernel, plain),
        ("pacconv_transpose2d", transposed, plain),
    ):
        for workload in shapes:
            for backward in (False, True):
                mode = "forward+backward" if backward else "forward"
                with torch.set_grad_enabled(backward):
                    candidates = make(workload, backward=backward)
                    yield rows(op, mode, workload, measure(candidates, rounds=rounds))
