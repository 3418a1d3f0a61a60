"""All there is to check on a GPU machine, in ten minutes: what is lost when time is up is one stage at most.

    python -m benchmarks.gpu_check [--output FOLDER]

Each stage is a process with a deadline. Rows are written as they are measured, to the folder that `--output` or the
variable OUT names; a second call there goes on with the stages that have not ended. Exits with 0 where all passed, 1
where one did not, and 2 where there is no CUDA device.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.harness import OUTPUT, RESULTS

ROOT = Path(__file__).parents[1]
STATE, LOG = "gpu_check.json", "gpu_check.log"
BUDGET = 480  # seconds, of all stages


@dataclass(frozen=True)
class Stage:
    """One process: a command of Python's, and the seconds that it may take."""

    name: str
    seconds: int
    command: tuple[str, ...]
    tool: tuple[str, ...] = ()  # that runs it, skipped where it is not installed


def _rows(*options: str) -> tuple[str, ...]:
    return ("-m", "benchmarks", *options, "--device", "cuda", "--rounds", "7", "--seconds", "2")


_SHAPES = ("operators", "--only", "b*-c256-*")
_STEPS = ("-m", "benchmarks.gpu_stages")
_COUNTERS = ("ncu", "--clock-control", "none", "--set", "basic", "--kernel-name", "regex:dot_kernel|distance|guided")
_TESTS = ("tests/pac_ops/backends", "tests/hotswap/test_on_cuda.py")
STAGES = (
    Stage("versions", 20, (*_STEPS, "versions")),
    Stage("limits", 20, _rows("limits", "--dtype", "bfloat16")),
    Stage("compiling", 60, (*_STEPS, "compile")),
    Stage("correctness", 50, (*_STEPS, "correct")),
    Stage("before a launch", 20, _rows("launch")),
    Stage("tiles", 60, (*_STEPS, "tiles")),
    Stage("operators, graphed", 50, _rows(*_SHAPES, "--dtype", "bfloat16", "--graphs")),
    Stage("operators", 40, _rows(*_SHAPES, "--dtype", "bfloat16")),
    Stage("enlargement and CRF, graphed", 20, _rows("resizing", "crf", "--graphs")),
    Stage("networks", 30, _rows("networks", "--dtype", "bfloat16")),
    Stage("profile", 20, (*_STEPS, "profile")),
    Stage("counters", 30, (*_STEPS, "four"), _COUNTERS),
    Stage("memory checked", 20, (*_STEPS, "two"), ("compute-sanitizer", "--tool", "memcheck")),
    Stage("tests", 40, ("-m", "pytest", "-n", "0", *_TESTS, "-m", "gpu and not slow")),
)


def check(stages: Sequence[Stage], folder: Path) -> dict[str, str]:
    """Run the stages that have not ended here before; how each ended, which is also kept in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / STATE
    ended: dict[str, str] = json.loads(state.read_text()) if state.exists() else {}
    environment = os.environ | {OUTPUT: str(folder), "PYTHONUNBUFFERED": "1"}
    with (folder / LOG).open("a") as log:
        for stage in stages:
            if ended.get(stage.name, "late") != "late":
                continue
            started = time.monotonic()
            log.write(f"\n== {stage.name}\n")
            log.flush()
            ended[stage.name] = _run(stage, environment, log.fileno())
            print(f"{stage.name}: {ended[stage.name]}, {time.monotonic() - started:.0f} s", flush=True)
            state.write_text(json.dumps(ended, indent=1))
    return ended


def _run(stage: Stage, environment: dict[str, str], log: int) -> str:
    if stage.tool and shutil.which(stage.tool[0]) is None:
        return "skipped"
    command = [*stage.tool, sys.executable, *stage.command]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
    try:
        return "passed" if process.wait(stage.seconds) == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # with what it started
        process.wait()
        return "late"


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Folder for all files; by default that of OUT.")
def main(output: Path | None) -> None:
    """Run all, whatever becomes of the first: time on such a machine is short."""
    import torch

    if not torch.cuda.is_available():
        click.echo("gpu_check needs a CUDA device, and PyTorch finds none here", err=True)
        sys.exit(2)
    ended = check(STAGES, output or Path(os.environ.get(OUTPUT) or RESULTS.parent / "gpu"))
    sys.exit(int(any(how in ("failed", "late") for how in ended.values())))


if __name__ == "__main__":
    main()
