"""Checks networks one after another, each in a process of its own, with limits of time and memory."""

import csv
import datetime as dt
import fcntl
import math
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import hotswap
from benchmarks.coverage import convolutions, enlargements
from benchmarks.coverage.networks import Network
from benchmarks.coverage.plain import NotApplicable, PlainError, one_line
from benchmarks.coverage.promises import BrokenPromise

# What became of a network.
OK, REFUSED, BROKEN, FAILED, TIMEOUT = "ok", "refused", "broken", "failed", "timeout"  # of those that count
PLAIN, NONE = "plain fails", "not applicable"  # which do not
COUNTED = (OK, REFUSED, BROKEN, FAILED, TIMEOUT)
_PACKAGES = {"smp": "segmentation_models_pytorch"}
_FORK = multiprocessing.get_context("fork")  # a child has the libraries imported already


@dataclass(frozen=True)
class Kind:
    """What is swapped and checked, and where its rows are kept."""

    check: Callable[[Network, Any], None]  # fills in the report as it goes on
    report: Callable[[], Any]  # a new one: a dataclass
    results: Path


RESULTS = Path(__file__).parents[1] / "results"
KINDS = {
    "convolutions": Kind(convolutions.check, convolutions.Report, RESULTS / "coverage.csv"),
    "enlargements": Kind(enlargements.check, enlargements.Report, RESULTS / "coverage_enlargements.csv"),
}


@dataclass(frozen=True)
class Row:
    """What is kept of one network."""

    library: str
    name: str
    family: str
    outcome: str
    reason: str  # why it is no "ok"
    report: Any  # its fields are columns
    seconds: float  # of the processor
    peak_mb: int  # resident, at most
    commit: str  # the last that touched what converts
    library_version: str
    torch: str
    date: str

    @property
    def id(self) -> str:
        """Such as timm:resnet18."""
        return f"{self.library}:{self.name}"

    def cells(self) -> dict[str, Any]:
        """A line of the table, by column."""
        cells: dict[str, Any] = {}
        for name, value in vars(self).items():
            cells |= {key: _cell(x) for key, x in vars(value).items()} if name == "report" else {name: value}
        return cells


def _cell(value: Any) -> Any:
    if isinstance(value, list):  # notes
        return "; ".join(value)
    if isinstance(value, tuple):  # names
        return " ".join(map(str, value))
    return float(f"{value:.2g}") if isinstance(value, float) else value


def read(path: Path) -> dict[str, dict[str, str]]:
    """The newest row of each network, by its id; none where there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {f"{row['library']}:{row['name']}": row for row in csv.DictReader(file)}


def append(row: Row, path: Path) -> None:
    """Add one row; several processes may."""
    cells = row.cells()
    with path.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, fieldnames=list(cells))
        if file.seek(0, os.SEEK_END) == 0:
            writer.writeheader()
        writer.writerow(cells)


def sweep(kind: Kind, networks: Iterable[Network], *, jobs: int, seconds: int, gigabytes: float) -> Iterator[Row]:
    """Rows of all networks, as they finish. `seconds` are of the processor, so that a busy machine fails nothing."""
    waiting = iter(networks)
    running: list[_Run] = []
    more = True
    while more or running:
        while more and len(running) < jobs:
            network = next(waiting, None)
            if network is None:
                more = False
            else:
                running.append(_Run(kind, network, seconds, gigabytes))
        multiprocessing.connection.wait([run.process.sentinel for run in running], timeout=0.2)
        for run in [run for run in running if run.is_over()]:
            running.remove(run)
            yield run.row()


class _Run:
    """One network's process."""

    def __init__(self, kind: Kind, network: Network, seconds: int, gigabytes: float) -> None:
        self.kind = kind
        self.network = network
        self.limit = seconds
        self.received, sent = _FORK.Pipe(duplex=False)
        self.process = _FORK.Process(target=_child, args=(kind, network, sent, seconds, gigabytes))
        self.process.start()
        sent.close()

    def is_over(self) -> bool:
        # A long message is sent only as it is read, so the process may wait for that.
        return self.received.poll() or self.process.exitcode is not None

    def row(self) -> Row:
        try:
            report, outcome, reason, seconds, peak = self.received.recv()
            self.process.join()
        except EOFError:  # it died before it sent anything
            self.process.join()
            report, outcome, seconds, peak = self.kind.report(), FAILED, math.nan, 0
            reason = f"died ({self.process.exitcode})"
            if self.process.exitcode == -signal.SIGXCPU:
                outcome, reason = TIMEOUT, f"more than {self.limit} s"
        return Row(
            self.network.library,
            self.network.name,
            self.network.family,
            outcome,
            reason,
            report,
            round(seconds, 2),
            peak,
            commit(),
            metadata.version(_PACKAGES.get(self.network.library, self.network.library)),
            torch.__version__,
            dt.datetime.now(tz=dt.UTC).date().isoformat(),
        )


def _child(
    kind: Kind,
    network: Network,
    results: "multiprocessing.connection.Connection[Any, Any]",
    seconds: int,
    gigabytes: float,
) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and jobs must not wait for each other
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    started = time.process_time()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    report = kind.report()
    outcome, reason = attempt(lambda: kind.check(network, report))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    results.send((report, outcome, reason, time.process_time() - started, peak))
    results.close()
    os._exit(0)  # at once: freeing the network would take longer


def attempt(checks: Callable[[], None]) -> tuple[str, str]:
    """Outcome and reason of some checks."""
    try:
        checks()
    except NotApplicable as error:
        return NONE, str(error)
    except PlainError as error:
        return PLAIN, str(error)
    except hotswap.HotswapError as error:
        return REFUSED, str(error)
    except BrokenPromise as error:
        return BROKEN, str(error)
    except Exception as error:  # noqa: BLE001 (anything else is reported as what it is)
        return FAILED, one_line(error)
    return OK, ""


@cache
def commit() -> str:
    """The last commit that touched the packages that convert."""
    root = Path(__file__).parents[2]
    packages = ["hotswap", "pac_ops"]

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=root, check=True)  # noqa: S603, S607
        return done.stdout.strip()

    dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no", "--", *packages) else ""
    return git("log", "-1", "--format=%h", "--", *packages) + dirty
