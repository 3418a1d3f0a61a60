"""What a call takes before its kernel runs: on a CPU with launches stubbed out, on a GPU as it is."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F

import pac_ops
from benchmarks import gpu
from benchmarks.harness import BOTH, FORWARD, Candidate, Case
from benchmarks.stubbed import stubbed

CALLS = 200  # of one run, timed together
CHANNELS, SIZE = 16, 4  # as few as a matrix product has, on a map whose copies take no time
OP = "launch of "
OURS, STOCK = "pac_ops triton", "F.conv2d of one pixel"
LAYOUTS = ((torch.bfloat16, True), (torch.float32, False))  # dtype, and whether channels-last
TIMED = (
    ("pacconv2d", FORWARD),
    ("PacConv2d", FORWARD),
    ("packernel2d", FORWARD),
    ("pacresize2d", FORWARD),
    ("pacconv2d", BOTH),
)


def calls(device: torch.device, dtype: torch.dtype, *, last: bool) -> dict[tuple[str, str], Candidate]:
    """The calls that are timed, by name and mode; channels-last or contiguous."""
    torch.manual_seed(0)
    laid = torch.channels_last if last else torch.contiguous_format

    def image(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype, memory_format=laid)

    x, weight = image(1, CHANNELS, SIZE, SIZE), image(CHANNELS, CHANNELS, 3, 3)
    bias, kernel = image(1, CHANNELS, 1, 1).flatten(), torch.rand(1, 1, 3, 3, SIZE, SIZE, device=device)
    guide, fine = image(1, 8, SIZE, SIZE), torch.randn(1, 3, 2 * SIZE, 2 * SIZE, device=device)
    layer = pac_ops.PacConv2d(CHANNELS, CHANNELS, 3, padding=1).to(device, dtype)
    layer.requires_grad_(requires_grad=False).to(memory_format=laid)
    leaves = v, k, w, b = [t.detach().clone().requires_grad_() for t in (x, kernel, weight, bias)]
    pixel, one = (torch.randn(1, 1, 1, 1, device=device) for _ in range(2))  # in 16 bits a CPU's takes far longer
    learning = p, q = [t.detach().clone().requires_grad_() for t in (pixel, one)]

    def both() -> None:
        out = pac_ops.pacconv2d(v, k, w, b, padding=1)
        torch.autograd.grad(out, leaves, x)

    def stock_both() -> None:
        torch.autograd.grad(F.conv2d(p, q), learning, pixel)

    return {
        ("pacconv2d", FORWARD): lambda: pac_ops.pacconv2d(x, kernel, weight, bias, padding=1),
        ("PacConv2d", FORWARD): lambda: layer(x, guide),
        ("packernel2d", FORWARD): lambda: pac_ops.packernel2d(guide, None, 3, padding=1),
        ("pacresize2d", FORWARD): lambda: pac_ops.pacresize2d(x, fine),
        ("pacconv2d", BOTH): both,
        (STOCK, FORWARD): lambda: F.conv2d(pixel, one),
        (STOCK, BOTH): stock_both,
    }


def cases(device: torch.device) -> Iterator[Case]:
    """Every call, beside PyTorch's convolution of one pixel."""
    stub = not gpu.is_gpu(device)
    ours = f"{OURS}, launches stubbed out" if stub else OURS

    def make(name: str, mode: str, dtype: torch.dtype, last: bool) -> Mapping[str, Candidate]:
        made = calls(device, dtype, last=last)
        return {ours: made[name, mode], STOCK: made[STOCK, mode]}

    for dtype, last in LAYOUTS:
        for name, mode in TIMED:
            yield Case(
                f"{OP}{name}",
                mode,
                "channels-last" if last else "contiguous",
                partial(make, name, mode, dtype, last),
                dtype=dtype,
                calls=CALLS,
                own_time=True,
                around=stubbed if stub else nullcontext,
            )
