"""What the machine can do at best: one large matrix product, and one large copy."""

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from benchmarks import gpu
from benchmarks.harness import FORWARD, Candidate, Case

PRODUCT, COPY, TORCH = "matrix product", "copy", "torch"
ON_CPU, ON_GPU = (2048, 2**28), (8192, 2**31)  # the side of the matrices, and bytes copied


def product(device: torch.device, dtype: torch.dtype, side: int) -> Mapping[str, Candidate]:
    """A square product, of which this machine does no more operations a second."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return {TORCH: lambda: a @ b}


def copy(device: torch.device, size: int) -> Mapping[str, Candidate]:
    """A copy, larger than any cache, of which this machine moves no more bytes a second."""
    a = torch.randn(size // 4, device=device)
    b = torch.empty_like(a)
    return {TORCH: lambda: b.copy_(a)}


def cases(device: torch.device, dtype: torch.dtype) -> Iterator[Case]:
    """Both, sized to take milliseconds."""
    side, size = ON_GPU if gpu.is_gpu(device) else ON_CPU
    yield Case(PRODUCT, FORWARD, f"{side}x{side}", partial(product, device, dtype, side), 2.0 * side**3, dtype=dtype)
    yield Case(COPY, FORWARD, f"{size >> 20} MiB", partial(copy, device, size), least_bytes=2.0 * size)
