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
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import hotswap
from benchmarks.coverage.check import BrokenPromise, NotApplicable, PlainError, Report, check, one_line
from benchmarks.coverage.networks import Network

# What became of a network.
OK, REFUSED, BROKEN, FAILED, TIMEOUT = "ok", "refused", "broken", "failed", "timeout"  # of those that count
PLAIN, NONE = "plain fails", "not applicable"  # which do not
COUNTED = (OK, REFUSED, BROKEN, FAILED, TIMEOUT)
_PACKAGES = {"smp": "segmentation_models_pytorch"}
_FORK = multiprocessing.get_context("fork")  # a child has the libraries imported already


@dataclass(frozen=True)
class Row:
    """What is kept of one network."""

    library: str
    name: str
    family: str
    outcome: str
    reason: str  # why it is no "ok"
    parameters: int
    convolutions: int
    size: int
    choice: str
    targets: str
    guide: str
    method: str
    difference_zero: float
    difference_paper: float
    difference_strong: float
    notes: str
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


def read(path: Path) -> dict[str, dict[str, str]]:
    """The newest row of each network, by its id; none where there is no file."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {f"{row['library']}:{row['name']}": row for row in csv.DictReader(file)}


def append(row: Row, path: Path) -> None:
    """Add one row; several processes may."""
    with path.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, fieldnames=list(Row.__dataclass_fields__))
        if file.seek(0, os.SEEK_END) == 0:
            writer.writeheader()
        writer.writerow(asdict(row))


def sweep(networks: Iterable[Network], *, jobs: int, seconds: int, gigabytes: float) -> Iterator[Row]:
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
                running.append(_Run(network, seconds, gigabytes))
        multiprocessing.connection.wait([run.process.sentinel for run in running], timeout=0.2)
        for run in [run for run in running if run.is_over()]:
            running.remove(run)
            yield run.row()


class _Run:
    """One network's process."""

    def __init__(self, network: Network, seconds: int, gigabytes: float) -> None:
        self.network = network
        self.limit = seconds
        self.received, sent = _FORK.Pipe(duplex=False)
        self.process = _FORK.Process(target=_child, args=(network, sent, seconds, gigabytes))
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
            report, outcome, reason, seconds, peak = Report(), FAILED, f"died ({self.process.exitcode})", math.nan, 0
            if self.process.exitcode == -signal.SIGXCPU:
                outcome, reason = TIMEOUT, f"more than {self.limit} s"
        return Row(
            self.network.library,
            self.network.name,
            self.network.family,
            outcome,
            reason,
            report.parameters,
            report.convolutions,
            report.size,
            report.choice,
            " ".join(report.targets),
            " ".join(report.guides),
            report.method,
            _rounded(report.difference_zero),
            _rounded(report.difference_paper),
            _rounded(report.difference_strong),
            "; ".join(report.notes),
            round(seconds, 2),
            peak,
            commit(),
            metadata.version(_PACKAGES.get(self.network.library, self.network.library)),
            torch.__version__,
            dt.datetime.now(tz=dt.UTC).date().isoformat(),
        )


def _rounded(x: float) -> float:
    return float(f"{x:.2g}")


def _child(
    network: Network, results: "multiprocessing.connection.Connection[Any, Any]", seconds: int, gigabytes: float
) -> None:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork, and jobs must not wait for each other
    limit = int(gigabytes * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    started = time.process_time()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    report = Report()
    outcome, reason = attempt(lambda: check(network, report))
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
