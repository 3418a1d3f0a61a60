"""Result files: one of each experiment, with all it was made by, written anew after each run."""

import datetime as dt
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.evidence.config import Experiment
from benchmarks.evidence.runs import Row
from recipes import results

FOLDER = Path(__file__).parents[1] / "results" / "evidence"


def path_of(name: str) -> Path:
    """Of an experiment."""
    return FOLDER / f"{name}.json"


def read(name: str) -> list[Row]:
    """The rows of an experiment; none where it has not been begun."""
    file = path_of(name)
    if not file.exists():
        return []
    return [Row(**row) for row in json.loads(file.read_text(encoding="utf-8"))["rows"]]


def write(name: str, experiment: Experiment, rows: Iterable[Row]) -> None:
    """Write an experiment's rows, with its config, the versions and the machine of the last run."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    state = results.git_state()
    result = {
        "experiment": experiment.model_dump(mode="json"),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "versions": results.versions(),
        "git": state and {"commit": state["commit"]},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "rows": [asdict(row) for row in sorted(rows, key=lambda row: (row.arm, row.seed, row.rate))],
    }
    results.write(path_of(name), result)
