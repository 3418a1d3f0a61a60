"""Stages of `gpu_check` that are no suite of the benchmarks: each prints, and writes to the folder of results."""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found"

import os
import platform
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import click
import torch
import triton

from benchmarks import crf, gpu, gpu_correct, gpu_tiles, launching, networks, operators, resizing
from benchmarks.harness import Case, Workload, commit, results_file
from pac_ops.backends import choose
from pac_ops.geometry import Window

PROFILE, COUNTERS = "profile.txt", "counters.csv"
MISSING = 3  # the exit status where a tool is not there, or may not do its work
PRECISIONS = ("bfloat16", "tf32")  # of what is measured at every shape
FEW = ("float16", "float32")  # and at few
LOOKED_AT = Workload(1, 256, 64, dtype=torch.bfloat16)
CHECKED = Workload(2, 40, 19, dtype=torch.bfloat16)  # no multiple of a tile, so that masks are needed
_WINDOW = Window((3, 3), padding=(1, 1))
_SMI = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu"


def versions() -> bool:
    """What is measured, and on what; whether it is the Triton backend that runs here."""
    x = torch.zeros(1, device=gpu.DEVICE)
    for name, value in (
        ("python", platform.python_version()),
        ("torch", torch.__version__),
        ("triton", triton.__version__),
        ("commit", commit()),
        ("device", torch.cuda.get_device_properties(gpu.DEVICE)),
        ("cuDNN", torch.backends.cudnn.version()),
        ("processors", os.cpu_count()),
        ("backends", choose.explain(x)),
    ):
        print(f"{name}: {value}")
    if shutil.which("nvidia-smi") is not None:
        subprocess.run(["nvidia-smi", f"--query-gpu={_SMI}", "--format=csv"], check=False)  # noqa: S603, S607
    return choose.backend_for(x) == "triton"


def to_compile() -> Iterator[tuple[str | None, Callable[[], None]]]:
    """Everything of ours that later stages run, with its precision: what is measured first."""
    for precision in (*PRECISIONS, *FEW):
        dtype, _ = gpu.PRECISIONS[precision]
        table = operators.QUICK if precision in FEW else operators.TABLE
        of_dtype = [Workload(**{**vars(w), "dtype": dtype}) for w in table]
        for case in operators.cases(of_dtype, gpu.DEVICE, peers=False):
            yield precision, partial(_each, case)
    for case in (
        *networks.cases(gpu.DEVICE, torch.bfloat16),
        *resizing.cases(gpu.DEVICE),
        *crf.cases(gpu.DEVICE),
        *launching.cases(gpu.DEVICE),
    ):
        yield None, partial(_each, case)
    for precision, job in gpu_tiles.jobs():
        yield precision, partial(_every_tile, job)
    for precision, last in gpu_correct.KINDS:
        for family in gpu_correct.families(gpu_correct.Drawn(gpu.PRECISIONS[precision][0], last)):
            yield precision, partial(_family, family)


def _each(case: Case) -> None:
    for run in case.make().values():
        run()


def _every_tile(job: gpu_tiles.Job) -> None:
    for _, run in job.runs():
        run()


def _family(family: gpu_correct.Family) -> None:
    family.compute(False)


def compile_all() -> bool:
    """Call all once, so that Triton's cache has it, in as many processes as there are processors."""
    count = os.cpu_count() or 1
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        failed = sum(pool.map(_compile, [count] * count, range(count)))
    return failed == 0


def _compile(processes: int, mine: int) -> int:
    """One process's share: how many of its calls failed."""
    failed = 0
    for number, (precision, run) in enumerate(to_compile()):
        if number % processes != mine:
            continue
        try:
            with gpu.in_precision(precision or "tf32"):
                run()
                torch.cuda.synchronize()
        except Exception:  # noqa: BLE001 (one that fails must not keep the others from the cache)
            failed += 1
            traceback.print_exc()
    return failed


def correct() -> bool:
    """See `gpu_correct`."""
    return gpu_correct.correct(_folder())


def tiles() -> bool:
    """See `gpu_tiles`."""
    return gpu_tiles.sweep(_folder())


def profile() -> bool:
    """FCN-8s channels-last, plain and swapped, inference and training: which kernels take how long."""
    with (_folder() / PROFILE).open("w") as file:
        for training in (False, True):
            steps = networks.fcn8s(gpu.DEVICE, torch.bfloat16, training=training)
            for name in (networks.PLAIN + networks.LAST, networks.SWAPPED + networks.LAST):
                run = steps[name]
                run()
                with torch.profiler.profile() as profiled:
                    run()
                    torch.cuda.synchronize()
                table = profiled.key_averages().table(sort_by="self_cuda_time_total", row_limit=30)
                print(name, "training step" if training else "inference", table, sep="\n", file=file, flush=True)
    return True


def counters() -> bool:
    """The hardware counters of the calls of `four`, by `ncu`."""
    path = _folder() / COUNTERS
    command = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--set", "detailed"]
    ended = _by_tool([*command, "--page", "raw", "--csv", "--log-file", str(path)], "four")
    if not (path.exists() and '"ID"' in path.read_text()):
        print("missing: ncu read no counters here", path.read_text() if path.exists() else "", flush=True)
        sys.exit(MISSING)
    return ended == 0


def memory_checked() -> bool:
    """The calls of `two`, every access checked by `compute-sanitizer`."""
    command = ["compute-sanitizer", "--tool", "memcheck", "--report-api-errors", "no"]  # PyTorch tries some that fail
    return _by_tool([*command, "--error-exitcode", "9"], "two") == 0


def _by_tool(command: list[str], stage: str) -> int:
    """The exit status of a stage that a tool runs, with each tensor an allocation of its own."""
    if shutil.which(command[0]) is None:
        print(f"missing: {command[0]} is not installed here", flush=True)
        sys.exit(MISSING)
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [*command, sys.executable, "-m", "benchmarks.gpu_stages", stage]
    return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603


def four() -> bool:
    """The four kernels that matter, for a tool to look at: their first calls compile, and are not looked at."""
    calls = _calls(LOOKED_AT)
    for watched in (False, True):
        if watched:
            torch.cuda.profiler.start()
        for run in calls:
            run()
        torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    return True


def two() -> bool:
    """The first two of these kernels, at a size that fills no tile."""
    for run in _calls(CHECKED)[:2]:
        run()
    torch.cuda.synchronize()
    return True


def _calls(w: Workload) -> list[Callable[[], object]]:
    """The sum; that with K's gradient; the weight's gradient; K."""
    backend = choose.load("triton")
    x, kernel, weight, grad = gpu_tiles.tensors(w, last=True)
    backward = partial(backend.pacconv2d_backward, grad, x, kernel, weight, _WINDOW, 1)
    return [
        partial(backend.pacconv2d, x, kernel, weight, None, _WINDOW, 1),
        partial(backward, (True, True, False)),
        partial(backward, (False, False, True)),
        partial(backend.gaussian_kernel2d, x, _WINDOW),
    ]


def _folder() -> Path:
    return results_file().parent


STAGES: dict[str, Callable[[], bool]] = {
    "versions": versions,
    "compile": compile_all,
    "correct": correct,
    "tiles": tiles,
    "profile": profile,
    "counters": counters,
    "four": four,
    "memory": memory_checked,
    "two": two,
}


@click.command()
@click.argument("stage", type=click.Choice(list(STAGES)))
def main(stage: str) -> None:
    """Run one; exits with 1 where something failed."""
    if not STAGES[stage]():
        sys.exit(1)


if __name__ == "__main__":
    main()
