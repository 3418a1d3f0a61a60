"""All there is to check on a GPU machine, in one call: tests of kernels and of conversions, then measurements.

    python -m benchmarks.gpu_check

Exits with 0 where all passed, 1 where one did not, and 2 where there is no CUDA device.
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

COMMANDS = (
    ("-m", "pytest", "tests/pac_ops/backends", "-m", "gpu and not slow", "--durations=10"),
    ("-m", "pytest", "tests/hotswap/test_on_cuda.py", "-m", "gpu", "--durations=10"),
    ("-m", "pytest", "tests/pac_ops/backends/test_seen_through.py"),
    ("-m", "benchmarks", "--device", "cuda", "--dtype", "bfloat16"),
    ("-m", "benchmarks", "--device", "cuda"),
)


def main() -> int:
    """Run all, whatever becomes of the first: time on such a machine is short."""
    if not torch.cuda.is_available():
        print("gpu_check needs a CUDA device, and PyTorch finds none here", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, Triton {version('triton')}", flush=True)
    failed = False
    for command in COMMANDS:
        print("$ python", *command, flush=True)
        root = Path(__file__).parents[1]
        failed |= subprocess.run([sys.executable, *command], check=False, cwd=root).returncode != 0  # noqa: S603
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
