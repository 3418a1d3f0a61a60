"""Stages of `gpu_check` that are no suite of the benchmarks: each prints, or writes to the folder of results."""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found"

import csv
import os
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import click
import torch
import triton

from benchmarks import networks, sm90
from benchmarks.harness import commit, results_file
from pac_ops.backends import choose
from pac_ops.backends.triton import cycles
from pac_ops.backends.triton.launch import PLANS
from pac_ops.geometry import Window

SHAPES = ((1, 64, 256), (1, 256, 64), (8, 256, 64), (8, 256, 128))
CHECKED = (2, 128, 40)  # batch, channels, size
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_BOUNDS = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-3}  # float32 in TF32
_WINDOW = Window((3, 3), padding=(1, 1))
Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def versions() -> None:
    """What is measured, and on what."""
    for name, value in (
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("triton", triton.__version__),
        ("commit", commit()),
        ("device", torch.cuda.get_device_properties(0)),
        ("cuDNN", torch.backends.cudnn.version()),
    ):
        print(f"{name}: {value}")


def compile_all() -> None:
    """The kernels of the table, into Triton's cache, by as many processes as there are processors."""
    count = sum(1 for _ in sm90.calls())
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for line in pool.map(_compile, range(count)):
            print(line, flush=True)


def _compile(number: int) -> str:
    call = list(sm90.calls())[number]
    list(sm90.rows(call))
    return f"{call.name}, {call.shape}"


def tensors(batch: int, channels: int, size: int, dtype: torch.dtype, *, last: bool) -> Tensors:
    """Input, K, weight and the output's gradient, at random."""
    laid = torch.channels_last if last else torch.contiguous_format

    def image(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=DEVICE).to(dtype, memory_format=laid)

    x, grad = (image(batch, channels, size, size) for _ in range(2))
    kernel = torch.rand(batch, 1, 3, 3, size, size, device=DEVICE)
    return x, kernel, image(channels, channels, 3, 3), grad


def correct() -> None:
    """Convolution and its gradients in three dtypes and both layouts, against float64."""
    backend, oracle = choose.load("triton"), choose.load("reference")
    torch.manual_seed(0)
    worst = 0.0
    for dtype in _DTYPES:
        for last in (False, True):
            x, kernel, weight, grad = tensors(*CHECKED, dtype, last=last)
            wide = [t.double() for t in (x, kernel, weight, grad)]
            options = (_WINDOW, 1)
            needs = (True, True, True)
            actual = [
                backend.pacconv2d(x, kernel, weight, None, *options),
                *backend.pacconv2d_backward(grad, x, kernel, weight, *options, needs),
            ]
            exact = [
                oracle.pacconv2d(*wide[:3], None, *options),
                *oracle.pacconv2d_backward(wide[3], *wide[:3], *options, needs),
            ]
            for name, a, e in zip(("output", "input", "K", "weight"), actual, exact, strict=True):
                error = ((a.double() - e).norm() / e.norm()).item()
                print(f"{dtype}, {'channels-last' if last else 'contiguous'}, {name}: {error:.2e}", flush=True)
                worst = max(worst, error / _BOUNDS[dtype])
    if not worst <= 1:  # NaN is not
        raise SystemExit("an error is beyond its bound")


def each_tile() -> Iterator[tuple[str, str, str, float]]:
    """Milliseconds of a convolution with every tile there is for it."""
    backend, shipped = choose.load("triton"), dict(cycles.SUM)
    for dtype in (torch.bfloat16, torch.float32):
        how = "16 bits" if dtype == torch.bfloat16 else "tf32"
        for shape in SHAPES:
            x, kernel, weight, _ = tensors(*shape, dtype, last=True)
            for tile, taken in shipped[how].items():
                PLANS.clear()
                cycles.SUM[how] = {tile: taken}
                run = partial(backend.pacconv2d, x, kernel, weight, None, _WINDOW, 1)
                workload = f"b{shape[0]}-c{shape[1]}-{shape[2]}x{shape[2]}-k3"
                yield str(dtype), workload, str(tile), triton.testing.do_bench(run, 5, 20)
            cycles.SUM[how] = shipped[how]


def tiles() -> None:
    """The sweep, a row each, as they are measured."""
    with Path(results_file()).with_name("tiles.csv").open("a", newline="") as file:
        writer = csv.writer(file)
        for row in each_tile():
            writer.writerow(row)
            file.flush()


def profile() -> None:
    """FCN-8s, plain and swapped: which kernels take how long."""
    for name, run in networks.fcn8s(torch.device(DEVICE), torch.bfloat16, training=False).items():
        run()
        with torch.profiler.profile() as profiled:
            run()
        print(name, profiled.key_averages().table(sort_by="cuda_time_total", row_limit=25), sep="\n", flush=True)


def once(*, backward: bool) -> None:
    """A few kernels once each, for a tool to look at: two, or four."""
    backend = choose.load("triton")
    x, kernel, weight, grad = tensors(1, 256, 64, torch.bfloat16, last=True)
    backend.pacconv2d(x, kernel, weight, None, _WINDOW, 1)
    backend.gaussian_kernel2d(x, _WINDOW)
    if backward:
        backend.pacconv2d_backward(grad, x, kernel, weight, _WINDOW, 1, (True, True, True))
    torch.cuda.synchronize()


DEVICE = "cuda"
STAGES: dict[str, Callable[[], None]] = {
    "versions": versions,
    "compile": compile_all,
    "correct": correct,
    "tiles": tiles,
    "profile": profile,
    "four": lambda: once(backward=True),
    "two": lambda: once(backward=False),
}


@click.command()
@click.argument("stage", type=click.Choice(list(STAGES)))
def main(stage: str) -> None:
    """Run one."""
    STAGES[stage]()


if __name__ == "__main__":
    main()
