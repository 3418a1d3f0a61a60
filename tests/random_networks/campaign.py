"""The long run over random networks, in any number of processes, which goes on where it stopped."""

import argparse
import collections
import csv
import importlib.metadata
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from .refusals import reason
from .run import EXPORTED, Found, run
from .shrink import as_test, shrink

CHUNK = 100
COLUMNS = (
    "first", "networks", "nothing_to_swap", "converted_fx", "converted_hooks", "converted_mixed", "guides_moved_output",
    "laws_checked", "exported", "refused", "refused_by_reason", "faults", "seconds", "date", "commit", "torch", "python",
    "command",
)  # fmt: skip


def chunk(first: int, count: int, folder: Path, exported: int) -> dict[str, Any]:
    """Networks from one seed on; faults are written to files as tests."""
    torch.set_num_threads(1)
    began, came, reasons = time.perf_counter(), collections.Counter[str](), collections.Counter[str]()
    for seed in range(first, first + count):
        try:
            outcome = run(seed, exported=exported)
        except Exception:  # noqa: BLE001 (a fault of the generator or the oracle, to be looked at like any other)
            came["faults"] += 1
            _write(folder / f"{seed}.txt", traceback.format_exc())
            continue
        if outcome is None:
            came["nothing_to_swap"] += 1
        elif isinstance(outcome, Found):
            came["faults"] += 1
            _write(folder / f"{seed}.txt", as_test(shrink(outcome, seconds=20)))
        elif outcome.refused:
            came["refused"] += 1
            documented = reason(outcome.refused)
            reasons[documented or "not documented"] += 1
            if documented is None:
                came["faults"] += 1
                _write(folder / f"{seed}.txt", outcome.refused)
        else:
            came[f"converted_{outcome.method}"] += 1
            came["guides_moved_output"] += outcome.moved
            came["laws_checked"] += len(outcome.laws)
            came["exported"] += "exported" in outcome.laws
    row: dict[str, Any] = {name: came[name] for name in COLUMNS[2:12]}
    row |= {"first": first, "networks": count, "faults": came["faults"]}
    row["refused_by_reason"] = "; ".join(f"{name}: {n}" for name, n in sorted(reasons.items()))
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _chunk(given: tuple[int, int, Path, int]) -> dict[str, Any]:
    return chunk(*given)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--exported", type=int, default=EXPORTED, help="one in so many is written as ONNX")
    parser.add_argument("--output", type=Path, required=True, help="a CSV file; rows that it has are not run again")
    parser.add_argument("--faults", type=Path, default=Path("out/faults"), help="a folder for faults, as tests")
    given = parser.parse_args()
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    about = {
        "commit": head.stdout.strip(),
        "torch": importlib.metadata.version("torch"),
        "python": platform.python_version(),
        "command": " ".join(["python -m tests.random_networks.campaign", *sys.argv[1:]]),
    }
    known = []
    if given.output.exists():
        with given.output.open() as file:
            known = [int(row["first"]) for row in csv.DictReader(file)]
    else:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        with given.output.open("w", newline="") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writeheader()
    last = given.first + given.count
    firsts = [first for first in range(given.first, last, CHUNK) if first not in known]
    jobs = [(first, min(CHUNK, last - first), given.faults, given.exported) for first in firsts]
    began, faults = time.perf_counter(), 0
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(given.workers, maxtasksperchild=10) as pool:
        for done, row in enumerate(pool.imap_unordered(_chunk, jobs), start=1):
            with given.output.open("a", newline="") as file:
                csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(
                    row | about | {"date": datetime.now(UTC).isoformat("T", "minutes")}
                )
            faults += row["faults"]
            left = (time.perf_counter() - began) / done * (len(jobs) - done) / 60
            print(f"{done} of {len(jobs)} chunks, {faults} faults, {left:.0f} minutes left", flush=True)


if __name__ == "__main__":
    main()
