"""What is done otherwise on a GPU: time by events and by CUDA graphs, memory by the allocator, TF32 by a switch.

Where no CUDA device is at hand `DEVICE` can be another for a rehearsal (`benchmarks.rehearsal`), so whether a device
is the GPU is asked here alone.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

DEVICE = torch.device("cuda")
# By the names that rows have: dtype of activations and weights, and whether float32 is multiplied in TF32.
PRECISIONS = {
    "float32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "float16": (torch.float16, False),
    "bfloat16": (torch.bfloat16, False),
}
LEAST_MS = 2.0  # that is timed at once: several calls where one takes less
MOST_CALLS = 20
WARM_UPS = 3
Run = Callable[[], object]


def is_gpu(device: torch.device) -> bool:
    """Whether a device is a GPU."""
    return device.type == DEVICE.type


def device(name: str) -> torch.device:
    """The device of a name; "cuda" is `DEVICE`."""
    return DEVICE if name == "cuda" else torch.device(name)


@contextmanager
def in_precision(name: str) -> Iterator[None]:
    """In this block products and convolutions of float32 are in TF32, or are not, as one of `PRECISIONS` says."""
    _, tf32 = PRECISIONS[name]
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def milliseconds(run: Run, calls: int = 1) -> float:
    """Time of a call, from the first's start to the last's end on the device, Python included where it is behind."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / calls


def enough_calls(run: Run) -> int:
    """How many calls to time at once."""
    for _ in range(2):
        taken = milliseconds(run)
    return max(1, min(MOST_CALLS, math.ceil(LEAST_MS / max(taken, LEAST_MS / MOST_CALLS))))


def captured(run: Run, calls: int) -> Run:
    """The work of so many calls on the device, as the replay of one CUDA graph.

    Raises:
        RuntimeError: where it cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    replay: Run = graph.replay
    return replay


def peak(run: Run) -> int:
    """Bytes allocated at most at one time beyond those before, scratch space of libraries included."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
