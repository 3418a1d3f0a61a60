"""The result file of a run: what was done, with what, and the outcome."""

import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import hotswap
from hotswap.files.atomic import atomic_write
from hotswap.tables import render
from hotswap.versions import installed

_PACKAGES = ("accelerate", "numpy", "pydantic", "torchmetrics", "torchvision")


def versions() -> dict[str, str | None]:
    """Versions of everything that could change a result."""
    # torch's says what it was built for, too
    return {"hotswap": hotswap.__version__, "torch": torch.__version__, **installed(_PACKAGES)}


def git_state() -> dict[str, Any] | None:
    """The commit of this package's sources and whether they differ from it; None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "changed": bool(_git("status", "--porcelain"))}


def machine(device: torch.device, processes: int) -> dict[str, Any]:
    """The machine of a run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": device.type, "name": name, "processes": processes, "threads": torch.get_num_threads()}


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result as JSON, in one step."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table with one line per arm: each metric at start and end, and the time of a step."""
    names = list(next(iter(results.values()))["metrics"])
    columns = ["arm", "steps", *names, "ms a step"]
    rows: list[list[object]] = []
    for arm, result in results.items():
        first = result["history"][0]
        before = first["metrics"] if first["step"] == 0 else {}
        cells = [_figures(before.get(name), result["metrics"][name]) for name in names]
        rows.append([arm or "-", result["steps"], *cells, round(result["timings"]["ms_per_step"])])
    return render(columns, rows)


def _figures(before: float | None, after: float) -> str:
    return f"{after:.4f}" if before is None else f"{before:.4f} -> {after:.4f}"


def _git(*arguments: str) -> str | None:
    command = ["git", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)  # noqa: S603
    except FileNotFoundError:  # there is no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
