"""Time and memory of what works on large images in bands: python -m benchmarks.large.

Each row is measured in a process of its own. `extra_mib` is the most that the process held beyond the inputs and the
output (VmHWM less VmRSS before the call, less the output). A row is one call, after one of another size.
"""

import argparse
import csv
import datetime as dt
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

import pac_ops
from benchmarks.harness import RESULTS, commit, processor

LARGE = RESULTS.with_name("large.csv")
FIELDS = ("date", "commit", "torch", "cpu", "threads", "call", "workload", "seconds", "extra_mib")
# The call, classes, the side of the image; maps are coarse by 8.
CASES = (
    ("refine", 4, 1024),
    ("refine", 4, 2048),
    ("refine", 21, 2048),
    ("joint_bilateral_upsample, 25 taps", 4, 2048),
    ("pacresize2d, 16 taps", 4, 2048),
    ("pacresize2d, 4 taps", 4, 2048),
    ("pacresize2d_labels, 4 taps", 21, 2048),
    ("pacresize2d_labels, 4 taps", 150, 4096),
)


def _run(call: str, scores: Tensor, image: Tensor) -> Callable[[], Tensor]:
    return {
        "refine": lambda: pac_ops.refine(scores, image, bilateral_srgb=0.05),
        "joint_bilateral_upsample, 25 taps": lambda: pac_ops.joint_bilateral_upsample(scores, image, 0.1),
        "pacresize2d, 16 taps": lambda: pac_ops.pacresize2d(scores, image, scale=10.0, footprint=4),
        "pacresize2d, 4 taps": lambda: pac_ops.pacresize2d(scores, image, scale=10.0),
        "pacresize2d_labels, 4 taps": lambda: pac_ops.pacresize2d_labels(scores, image, scale=10.0),
    }[call]


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _inputs(classes: int, side: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(1, classes, side // 8, side // 8), torch.rand(1, 3, side, side)


def measured(call: str, classes: int, side: int, threads: int) -> tuple[float, float]:
    """Seconds, and MiB beyond inputs and output; of this process."""
    torch.set_num_threads(threads)
    with torch.no_grad():
        _run(call, *_inputs(2, 64))()  # what is loaded at the first call
        run = _run(call, *_inputs(classes, side))
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before, started = _resident("VmRSS"), time.perf_counter()
        out = run()
        seconds = time.perf_counter() - started
        return seconds, (_resident("VmHWM") - before - out.nbytes) / 2**20


def main() -> None:
    """Measure, print and append to `results/large.csv`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="calls that begin with this")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a process's own case
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(*json.loads(options.one))))
        return
    about = {"date": dt.date.today().isoformat(), "commit": commit(), "torch": metadata.version("torch")}  # noqa: DTZ011
    new = not LARGE.exists()
    with LARGE.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=FIELDS)
        if new:
            writer.writeheader()
        for threads in options.threads:
            for call, classes, side in CASES:
                if not call.startswith(options.only):
                    continue
                case = json.dumps((call, classes, side, threads))
                environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                command = [sys.executable, "-m", "benchmarks.large", "--one", case]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
                seconds, extra = json.loads(done.stdout.splitlines()[-1])
                workload = f"b1-c{classes}-{side // 8}to{side}-g3"
                row = about | {"cpu": processor(), "threads": threads, "call": call, "workload": workload}
                writer.writerow(row | {"seconds": f"{seconds:.2f}", "extra_mib": f"{extra:.0f}"})
                file.flush()
                print(f"{call:36} {workload:22} {threads} threads: {seconds:7.2f} s, {extra:6.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
