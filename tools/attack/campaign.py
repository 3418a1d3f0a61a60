"""Every hostile file and thousands of mutated ones, in a process that is replaced when one of them kills it."""

import collections
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fuzz
import torch
from attempts import Bench, Found
from hostile import all_samples
from hostile.samples import Sample

Case = tuple[str, int]  # "hostile" or "fuzz", and its number
Attack = Callable[[Case], tuple[Sample, Found]]

_PACKAGES = ("torch", "safetensors", "pillow", "pyyaml", "pydantic", "click", "timm", "torchvision", "numpy")


def about(command: str) -> dict[str, Any]:
    """When, with what and how something was measured."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "commit": head.stdout.strip(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def run(seed: int, first: int, count: int, *, with_hostile: bool = True) -> dict[str, Any]:
    """Attack with the hostile files, and with `count` mutated ones from number `first`; a summary."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(work)
        samples = all_samples(bench.trap) if with_hostile else []
        cases = [("hostile", index) for index in range(len(samples))] + [("fuzz", first + i) for i in range(count)]

        def attack(case: Case) -> tuple[Sample, Found]:
            kind, number = case
            if kind == "hostile":
                return samples[number], bench.attack(samples[number])
            sample = fuzz.sample(seed, number)
            return sample, bench.attack(sample, fuzz.choose(seed, number))

        lines = _supervised(cases, attack, Path(work) / "log")
    minutes = round((time.perf_counter() - began) / 60, 1)
    return _summary(lines) | {"seed": seed, "first": first, "minutes": minutes}


def _supervised(cases: Sequence[Case], attack: Attack, log: Path) -> list[dict[str, Any]]:
    """Do all cases in children of this process, each going on where the one before it died."""
    done = 0
    while done < len(cases):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _work(cases[done:], attack, log)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        done = len(lines)
        if status != 0:
            killed = f"the process died: {os.waitstatus_to_exitcode(status)}"
            with log.open("a") as stream:
                stream.write(json.dumps({"name": str(cases[done]), "kind": "?", "violations": [killed]}) + "\n")
            done += 1
    return [json.loads(line) for line in log.read_text().splitlines()]


def _work(cases: Sequence[Case], attack: Attack, log: Path) -> None:
    with log.open("a") as stream:
        for case in cases:
            sample, found = attack(case)
            line = {"name": sample.name, "kind": sample.kind, "outcomes": found.outcomes, "peak": found.peak}
            stream.write(json.dumps(line | {"seconds": found.seconds, "violations": found.violations}) + "\n")
            stream.flush()
            if found.violations:
                sys.stderr.write(f"{sample.name}: {found.violations[0]}\n")


def _summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    outcomes = collections.Counter(
        f"{line['kind']}: {name} {outcome}" for line in lines for name, outcome in line.get("outcomes", {}).items()
    )
    most, slowest = (max(lines, key=lambda line: line.get(key, 0)) for key in ("peak", "seconds"))
    return {
        "files": len(lines),
        "attempts": sum(outcomes.values()),
        "files_by_kind": dict(sorted(collections.Counter(line["kind"] for line in lines).items())),
        "outcomes": dict(sorted(outcomes.items())),
        "most_memory": {"mib": round(most.get("peak", 0) / 2**20), "file": most["name"]},
        "slowest": {"seconds": round(slowest.get("seconds", 0), 1), "file": slowest["name"]},
        "violations": [f"{line['name']}: {text}" for line in lines for text in line["violations"]],
    }
