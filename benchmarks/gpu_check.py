"""All there is to check on a GPU machine, in eight minutes: what is lost when time is up is one case of one stage.

    python -m benchmarks.gpu_check [--output FOLDER] [--resume FOLDER] [--commit NAME]

Each stage is a process with a deadline; what a stage leaves of its time is the next one's. Rows are written as they
are measured, to the folder that `--output` or the variable OUT names. A second call there, or one that resumes from a
copy of that folder, runs what is left: stages that have not begun, then those that were late or failed, without what
has rows already. Exits with 0 where all passed, 1 where one did not, and 2 where there is no CUDA device.
`python -m benchmarks.gpu_results FOLDER` takes in what came back.
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

from benchmarks.harness import COMMIT, OUTPUT, RESULTS

ROOT = Path(__file__).parents[1]
FOLDER = RESULTS.parent / "gpu"
STATE, LOG = "gpu_check.json", "gpu_check.log"
BUDGET = 480  # seconds, of all stages
PASSED, FAILED, LATE, MISSING = "passed", "failed", "late", "missing"
_HOW = {0: PASSED, 3: MISSING}  # 3: see `gpu_stages.MISSING`
_LEFT = (None, LATE, FAILED)  # that a second call runs, in this order


@dataclass(frozen=True)
class Stage:
    """One process: a command of Python's, and the seconds that it may take, beside what others left."""

    name: str
    seconds: int
    command: tuple[str, ...]


def _rows(*options: str) -> tuple[str, ...]:
    return ("-m", "benchmarks", *options, "--missing", "--device", "cuda", "--rounds", "7", "--seconds", "1")


_STEPS = ("-m", "benchmarks.gpu_stages")
_TESTS = ("tests/pac_ops/backends", "tests/hotswap/test_on_cuda.py")
# What matters most comes first. Compiled code is kept by Triton, so what the third stage does not get to is compiled
# by those after it, one kernel after the other.
STAGES = (
    Stage("versions", 15, (*_STEPS, "versions")),
    Stage("ceilings", 20, _rows("limits", "--dtype", "bfloat16", "--dtype", "tf32")),
    Stage("compiling", 85, (*_STEPS, "compile")),
    Stage("correctness", 40, (*_STEPS, "correct")),
    Stage("operators, bfloat16", 60, _rows("operators", "--dtype", "bfloat16", "--graphs")),
    Stage("operators, tf32", 50, _rows("operators", "--dtype", "tf32", "--graphs")),
    Stage("networks", 35, _rows("networks", "--dtype", "bfloat16", "--graphs")),
    Stage("enlargement and CRF", 15, _rows("resizing", "crf", "--graphs")),
    Stage("before a launch", 15, _rows("launch")),
    Stage("tiles", 35, (*_STEPS, "tiles")),
    Stage(
        "other precisions", 25, _rows("operators", "--quick", "--dtype", "float16", "--dtype", "float32", "--graphs")
    ),
    Stage("profile", 15, (*_STEPS, "profile")),
    Stage("counters", 20, (*_STEPS, "counters")),
    Stage("memory checked", 25, (*_STEPS, "memory")),
    Stage(
        "tests", 25, ("-m", "pytest", "-v", "-n", "16", "-p", "no:cacheprovider", *_TESTS, "-m", "gpu and not slow")
    ),
)


def check(stages: Sequence[Stage], folder: Path, commit: str = "") -> dict[str, str]:
    """Run the stages that are left in a folder; how each ended, which is also kept there."""
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / STATE
    ended: dict[str, str] = json.loads(state.read_text()) if state.exists() else {}
    environment = os.environ | {OUTPUT: str(folder), "PYTHONUNBUFFERED": "1"} | ({COMMIT: commit} if commit else {})
    spare = 0.0
    left = [stage for stage in stages if ended.get(stage.name) in _LEFT]
    with (folder / LOG).open("a") as log:
        for stage in sorted(left, key=lambda stage: _LEFT.index(ended.get(stage.name))):
            started = time.monotonic()
            log.write(f"\n== {stage.name}\n")
            log.flush()
            ended[stage.name] = _run(stage, stage.seconds + spare, environment, log.fileno())
            state.write_text(json.dumps(ended, indent=1))
            taken = time.monotonic() - started
            spare = max(0.0, spare + stage.seconds - taken)
            print(f"{stage.name}: {ended[stage.name]}, {taken:.0f} s", flush=True)
    return ended


def _run(stage: Stage, seconds: float, environment: dict[str, str], log: int) -> str:
    command = [sys.executable, *stage.command]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)  # noqa: S603
    try:
        return _HOW.get(process.wait(seconds), FAILED)
    except subprocess.TimeoutExpired:
        return LATE
    finally:  # with what it started, also where this process is told to stop
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.wait()


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Folder for all files; by default that of OUT.")
@click.option(
    "--resume",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder with what an earlier call brought back, which is copied first.",
)
@click.option("--commit", default="", help="Named in the rows, where there is no repository.")
def main(output: Path | None, resume: Path | None, commit: str) -> None:
    """Run all, whatever becomes of the first: time on such a machine is short."""
    import torch

    if not torch.cuda.is_available():
        click.echo("gpu_check needs a CUDA device, and PyTorch finds none here", err=True)
        sys.exit(2)
    folder = output or Path(os.environ.get(OUTPUT) or FOLDER)
    if resume is not None:
        shutil.copytree(resume, folder, dirs_exist_ok=True)
    ended = check(STAGES, folder, commit)
    sys.exit(int(any(how in (FAILED, LATE) for how in ended.values())))


if __name__ == "__main__":
    main()
