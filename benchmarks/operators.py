"""One operator at a time, against the stock convolutions, unfold + einsum, deformable convolution, zero-insertion."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

import pac_ops
from benchmarks import gpu
from benchmarks.harness import BOTH, FORWARD, Candidate, Case, Workload
from pac_ops.backends import choose

QUICK = [Workload(1, 64, 128), Workload(1, 256, 64), Workload(1, 512, 32)]
SHAPES = [(64, 256), (128, 128), (256, 64), (256, 128), (512, 32), (512, 64)]
TABLE = [Workload(batch, *shape) for batch in (1, 8) for shape in SHAPES]
TABLE += [
    Workload(1, 21, 500, window=5, dilation=16),
    Workload(1, 128, 128, stride=2),
    Workload(1, 96, 56, window=7, groups=96),
    Workload(1, 256, 56, groups=32),
]
GROWTH = {
    "pixels": [Workload(1, 64, size) for size in (32, 64, 128, 256, 512)],
    "input channels": [Workload(1, channels, 64, outputs=64) for channels in (32, 64, 128, 256, 512)],
    "batch": [Workload(batch, 64, 64) for batch in (1, 2, 4, 8, 16)],
}
GUIDE_CHANNELS = 128
SERVED = 256  # channels of the convolution that K might serve
FOR_KERNEL = Workload(8, 256, 128)  # whose K is measured on a GPU too
CONV, CONV_LAST, UNFOLD, DEFORM = "conv", "conv channels-last", "unfold + einsum", "deform_conv2d"
CONVS = (CONV, CONV_LAST)
INSERTED = "zeros inserted, pacconv2d"
LAST = ", channels-last"  # of our own, where both layouts are measured
Candidates = dict[str, Callable[[], Tensor]]


def ours(device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """The name under which our own time is kept: with the backend that runs here."""
    return f"pac_ops {choose.backend_for(torch.zeros(1, device=device, dtype=dtype))}"


def _leaf(device: torch.device, dtype: torch.dtype, *shape: int, needs: bool) -> Tensor:
    return torch.randn(shape, device=device, dtype=dtype).requires_grad_(needs)


def convolution(w: Workload, device: torch.device, *, backward: bool, peers: bool = True) -> Mapping[str, Candidate]:
    """One layer given K, as each candidate computes it; with gradients to input, K, weight and bias."""
    torch.manual_seed(0)
    outputs = w.outputs or w.channels
    x = _leaf(device, w.dtype, w.batch, w.channels, w.size, w.size, needs=backward)
    bias = _leaf(device, w.dtype, outputs, needs=backward)
    weight = _leaf(device, w.dtype, outputs, w.channels // w.groups, w.window, w.window, needs=backward)
    kernel = _adapting_kernel(w, device, backward=backward)
    ho, wo = kernel.shape[-2:]
    geometry = (w.stride, w.padding, w.dilation)
    forward: Candidates = {
        ours(device, w.dtype): lambda: pac_ops.pacconv2d(x, kernel, weight, bias, *geometry, w.groups)
    }
    x_last, weight_last = (
        t.detach().to(memory_format=torch.channels_last).requires_grad_(backward) for t in (x, weight)
    )
    if gpu.is_gpu(device) or w.groups == w.channels:  # where it is the fast layout
        forward[ours(device, w.dtype) + LAST] = lambda: pac_ops.pacconv2d(
            x_last, kernel, weight_last, bias, *geometry, w.groups
        )
    own = tuple(forward)
    if not peers:
        return _with_backward(forward, backward=backward)
    rounded = kernel.detach().to(w.dtype).requires_grad_(backward)
    # It has no bfloat16.
    for_deform = torch.float16 if w.dtype == torch.bfloat16 else w.dtype
    x_d, kernel_d, weight_d, bias_d = (
        t.detach().to(for_deform).requires_grad_(backward) for t in (x, kernel.flatten(1, 3), weight, bias)
    )
    offset = torch.zeros(w.batch, 2 * w.window**2, ho, wo, device=device, dtype=for_deform)

    def unfold() -> Tensor:
        taps: Tensor = F.unfold(x, w.window, w.dilation, w.padding, w.stride)
        adapted = taps.view(w.batch, w.channels, w.window, w.window, ho, wo) * rounded
        by_group = adapted.unflatten(1, (w.groups, -1))
        filters = weight.unflatten(0, (w.groups, -1))
        return torch.einsum("bgcijyx,gocij->bgoyx", by_group, filters).flatten(1, 2) + bias[:, None, None]

    forward |= {
        CONV: lambda: F.conv2d(x, weight, bias, *geometry, w.groups),
        CONV_LAST: lambda: F.conv2d(x_last, weight_last, bias, *geometry, w.groups),
        UNFOLD: unfold,
        DEFORM: lambda: deform_conv2d(x_d, offset, weight_d, bias_d, *geometry, mask=kernel_d),
    }
    narrow = w.dtype in (torch.float16, torch.bfloat16) and not gpu.is_gpu(device)
    if w.batch > 1 or narrow:  # their time goes with the batch, or 16 bits take them long, and is minutes
        _check(forward, UNFOLD, own)
        del forward[UNFOLD], forward[DEFORM]
    else:
        _check(forward, UNFOLD, (*own, DEFORM))
    return _with_backward(forward, backward=backward)


def _adapting_kernel(w: Workload, device: torch.device, *, backward: bool) -> Tensor:
    guide = torch.randn(w.batch, 8, w.size, w.size, device=device) / 4
    kernel, _ = pac_ops.packernel2d(guide, None, w.window, w.stride, w.padding, dilation=w.dilation)
    return kernel.requires_grad_(backward)


def transposed(w: Workload, device: torch.device, *, backward: bool) -> Mapping[str, Candidate]:
    """Guided upsampling by 2 with a 5 x 5 window, as inserting zeros and applying PAC computes it too."""
    torch.manual_seed(0)
    x = _leaf(device, w.dtype, w.batch, w.channels, w.size, w.size, needs=backward)
    weight = _leaf(device, w.dtype, w.channels, w.channels, 5, 5, needs=backward)
    guide = torch.randn(w.batch, 8, 2 * w.size, 2 * w.size, device=device) / 4
    kernel, _ = pac_ops.packernel2d(guide, None, 5, 2, 2, 1, transposed=True)
    kernel.requires_grad_(backward)

    def inserted() -> Tensor:
        spaced = x.new_zeros(w.batch, w.channels, 2 * w.size, 2 * w.size)
        spaced[:, :, ::2, ::2] = x
        turned = weight.transpose(0, 1).flip(2, 3).contiguous()
        return pac_ops.pacconv2d(spaced, kernel, turned, padding=2)

    forward: Candidates = {
        ours(device, w.dtype): lambda: pac_ops.pacconv_transpose2d(x, kernel, weight, None, 2, 2, 1),
        INSERTED: inserted,
        CONV: lambda: F.conv_transpose2d(x, weight, None, 2, 2, 1),
    }
    _check(forward, INSERTED, (ours(device, w.dtype),))
    return _with_backward(forward, backward=backward)


def adapting_kernel(w: Workload, device: torch.device, *, backward: bool) -> Mapping[str, Candidate]:
    """K from a guide of 128 channels, and the convolution of `SERVED` channels of that size that it might serve."""
    torch.manual_seed(0)
    guide = _leaf(device, w.dtype, w.batch, GUIDE_CHANNELS, w.size, w.size, needs=backward)
    with torch.no_grad():
        guide /= GUIDE_CHANNELS**0.5  # so that K is neither 0 nor 1
    x = _leaf(device, w.dtype, w.batch, SERVED, w.size, w.size, needs=backward)
    weight = _leaf(device, w.dtype, SERVED, SERVED, w.window, w.window, needs=backward)

    def unfold() -> Tensor:
        shape = (w.batch, GUIDE_CHANNELS, w.window**2, w.size, w.size)
        taps: Tensor = F.unfold(guide, w.window, padding=w.padding)
        return torch.exp(-0.5 * (taps.view(shape) - guide[:, :, None]).float().square().sum(1))

    forward: Candidates = {
        ours(device, w.dtype): lambda: pac_ops.packernel2d(guide, None, w.window, padding=w.padding)[0],
        UNFOLD: unfold,
        CONV: lambda: F.conv2d(x, weight, padding=w.padding),
    }
    return _with_backward(forward, backward=backward)


def _check(candidates: Candidates, true: str, others: tuple[str, ...]) -> None:
    """What is timed computes the same thing."""
    with torch.no_grad():
        expected = candidates[true]().double()
        for name in others:
            error = (candidates[name]().double() - expected).norm() / expected.norm()
            result = candidates[name]()
            tf32 = gpu.is_gpu(result.device) and torch.backends.cudnn.allow_tf32
            allowed = 2e-2 if result.dtype != torch.float32 else 5e-3 if tf32 else 1e-4
            if not error < allowed:
                raise AssertionError(f"{name} differs from {true} by {error:.2g} of its norm")


def _with_backward(forward: Candidates, *, backward: bool) -> Mapping[str, Candidate]:
    def without(run: Callable[[], Tensor]) -> Candidate:
        def alone() -> None:
            with torch.no_grad():
                run()

        return alone

    def with_gradient(run: Callable[[], Tensor]) -> Candidate:
        gradient = torch.randn_like(run().detach())

        def both() -> None:
            out = run()
            inputs = _leaves(out)
            torch.autograd.grad(out, inputs, gradient)

        return both

    return {name: with_gradient(run) if backward else without(run) for name, run in forward.items()}


def _leaves(out: Tensor) -> list[Tensor]:
    """All tensors that `out` was computed from and that want a gradient."""
    found: dict[int, Tensor] = {}
    waiting, seen = [out.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            found[id(leaf)] = leaf
        waiting += [source for source, _ in node.next_functions]
    return list(found.values())


def operations(w: Workload) -> float:
    """Multiplications and additions of one forward pass."""
    side = w.size // w.stride
    outputs = w.outputs or w.channels
    return 2.0 * w.batch * side**2 * outputs * (w.channels // w.groups) * w.window**2


def least_bytes(w: Workload, *, backward: bool) -> float:
    """Bytes of input, K, weight and output, each read or written once; K in float32."""
    side, size = w.size // w.stride, torch.finfo(w.dtype).bits // 8
    outputs = w.outputs or w.channels
    x, out = w.batch * w.channels * w.size**2 * size, w.batch * outputs * side**2 * size
    kernel, weight = w.batch * w.window**2 * side**2 * 4, outputs * (w.channels // w.groups) * w.window**2 * size
    forward = x + out + kernel + weight
    return float(forward + (forward + x + kernel + weight if backward else 0))


def cases(workloads: list[Workload], device: torch.device, *, peers: bool = True) -> Iterator[Case]:
    """Convolution at these shapes, without its peers where they are not wanted; the other operators at three."""
    few = [replace(w, dtype=workloads[0].dtype) for w in QUICK]
    for_kernel = [*few, replace(FOR_KERNEL, dtype=workloads[0].dtype)] if gpu.is_gpu(device) else few
    for op, make, shapes in (
        ("pacconv2d", partial(convolution, peers=peers), workloads),
        ("packernel2d", adapting_kernel, for_kernel),
        ("pacconv_transpose2d", transposed, few),
    ):
        for w in shapes:
            for mode in (FORWARD, BOTH):
                backward = mode == BOTH
                needs = (operations(w) * (3 if backward else 1), least_bytes(w, backward=backward))
                if op != "pacconv2d":
                    needs = (float("nan"), float("nan"))
                yield Case(op, mode, w.id, partial(make, w, device, backward=backward), *needs, dtype=w.dtype)


def growth_cases(device: torch.device) -> Iterator[Case]:
    """Our own time alone, as one thing grows."""
    for what, workloads in GROWTH.items():
        for w in workloads:
            make = partial(convolution, w, device, backward=True, peers=False)
            yield Case(f"growth with {what}", BOTH, w.id, make, operations(w) * 3, least_bytes(w, backward=True))
