"""Times candidates against each other in one process, measures their memory, and keeps the results.

Candidates are run in turn, round after round, so that what else the machine does falls on all of them alike, and
the median is taken. Rows are long-format: one a candidate and mode.
"""

import csv
import ctypes
import datetime as dt
import gc
import math
import os
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu

RESULTS = Path(__file__).parent / "results" / "benchmarks.csv"
OUTPUT = "OUT"  # a variable that may name the folder for results
COMMIT = "COMMIT"  # a variable that names the commit where files were copied without their repository
FORWARD, BOTH = "forward", "forward+backward"
GRAPHED = ", graphed"  # of a mode: what CUDA graphs of the calls take
Candidate = Callable[[], object]
Clock = Callable[[], float]
LEAST_ROUNDS = 3
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt


@dataclass(frozen=True)
class Workload:
    """The shapes of one call; `id` reads."""

    batch: int
    channels: int
    size: int  # height = width
    window: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    outputs: int | None = None  # channels of the output, where they are not those of the input
    dtype: torch.dtype = torch.float32

    @property
    def id(self) -> str:
        """Such as b1-c256-64x64-k3."""
        text = f"b{self.batch}-c{self.channels}-{self.size}x{self.size}-k{self.window}"
        for letter, value in (("s", self.stride), ("d", self.dilation), ("g", self.groups)):
            text += f"-{letter}{value}" if value != 1 else ""
        return text if self.outputs is None else f"{text}-o{self.outputs}"

    @property
    def padding(self) -> int:
        """The padding that keeps the size at stride 1."""
        return self.window // 2 * self.dilation


@dataclass(frozen=True)
class Case:
    """One measurement to make: candidates for one job, and the least that the job takes."""

    op: str
    mode: str
    workload: str
    make: Callable[[], Mapping[str, Candidate]]  # allocates; called anew for time and for memory
    operations: float = math.nan  # multiplications and additions that the job needs
    least_bytes: float = math.nan  # each tensor read or written once
    dtype: torch.dtype = torch.float32
    calls: int = 1  # in a time that is taken: more where a call is hardly longer than the clock's own
    own_time: bool = False  # by the clock of this thread, which stands while others run or a GPU works
    around: Callable[[], AbstractContextManager[None]] = nullcontext  # the measurement
    precision: str | None = None  # of `gpu.PRECISIONS`, on a GPU

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What its rows have in common: op, mode, workload and dtype."""
        return self.op, self.mode, self.workload, self.precision or str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Row:
    """One measurement made."""

    op: str
    backend: str
    mode: str
    dtype: str
    workload: str
    median: float
    spread: float  # between the first and the third quartile
    unit: str
    peak_bytes: int  # at most allocated during the call beyond what was there before it
    operations: float
    least_bytes: float
    device: str
    threads: int
    torch: str
    triton: str
    commit: str
    date: str


@dataclass(frozen=True)
class Machine:
    """Where the measurements are made, and how long each may take."""

    device: torch.device
    seconds: float  # for one case; slow candidates get fewer rounds, at least 3
    rounds: int
    facts: dict[str, object] = field(default_factory=dict)  # of every row
    graphs: bool = False  # time also what CUDA graphs of the calls take on the device, without the Python before

    @classmethod
    def at(cls, device: str, seconds: float, rounds: int, *, graphs: bool = False) -> "Machine":
        """This machine, with its versions."""
        on = gpu.device(device)
        return cls(on, seconds, rounds, facts(on), graphs)

    def measure(self, case: Case) -> list[Row]:
        """Rows of one case, a row a candidate, and with `graphs` another."""
        with ExitStack() as stack:
            if case.precision is not None:
                stack.enter_context(gpu.in_precision(case.precision))
            stack.enter_context(case.around())
            candidates = case.make()
            timed = {(name, case.mode): self._eager(run, case) for name, run in candidates.items()}
            if self.graphs:
                timed |= self._graphed(candidates, case)
            times = self._times(timed)
            peaks = {name: self._peak(run) for name, run in candidates.items()}
        _, _, workload, dtype = case.key
        return [
            Row(
                case.op,
                name,
                mode,
                dtype,
                workload,
                round(statistics.median(values), 5),
                round(_spread(values), 5),
                "ms",
                peaks[name],
                case.operations,
                case.least_bytes,
                **self.facts,  # type: ignore[arg-type]
            )
            for (name, mode), values in times.items()
        ]

    def _eager(self, run: Candidate, case: Case) -> Clock:
        """What times a call, once it has compiled and warmed up."""
        calls = case.calls
        if gpu.is_gpu(self.device) and not case.own_time:
            calls = max(calls, gpu.enough_calls(run))
            return partial(gpu.milliseconds, run, calls)
        return partial(_by_clock, run, calls, time.thread_time if case.own_time else time.perf_counter)

    def _graphed(self, candidates: Mapping[str, Candidate], case: Case) -> dict[tuple[str, str], Clock]:
        timed: dict[tuple[str, str], Clock] = {}
        for name, run in candidates.items():
            calls = gpu.enough_calls(run)
            try:
                replay = gpu.captured(run, calls)
            except RuntimeError as error:
                print(f"{name}, {case.op}, {case.workload}: no CUDA graph of it: {error}", flush=True)
                continue
            timed[name, f"{case.mode}{GRAPHED}"] = partial(_a_call, replay, calls)
        return timed

    def _times(self, timed: Mapping[tuple[str, str], Clock]) -> dict[tuple[str, str], list[float]]:
        """Milliseconds of a call of each candidate over interleaved rounds."""
        times: dict[tuple[str, str], list[float]] = {name: [] for name in timed}
        for clock in timed.values():  # compiles, tunes and warms up
            clock()
        order, started = random.Random(0), time.perf_counter()  # noqa: S311
        for done in range(self.rounds):
            if done >= LEAST_ROUNDS and time.perf_counter() - started > self.seconds:
                break
            # In another order each round: whoever always followed the same peer would find its caches.
            for name in order.sample(list(timed), len(timed)):
                times[name].append(timed[name]())
        return times

    def _peak(self, run: Candidate) -> int:
        """Bytes allocated at most at one time beyond those before, scratch space of libraries included."""
        if gpu.is_gpu(self.device):
            return gpu.peak(run)
        gc.collect()
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(
            _MMAP_THRESHOLD, 2**16
        )  # so that what is freed goes back to the system, and is not there already
        run()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _resident("VmRSS")
        run()
        peak = _resident("VmHWM") - before
        libc.mallopt(_MMAP_THRESHOLD, 2**25)  # what the allocator arrives at by itself in a long run
        libc.mallopt(_TRIM_THRESHOLD, 2**26)
        return max(0, peak)


def _by_clock(run: Candidate, calls: int, clock: Clock) -> float:
    started = clock()
    for _ in range(calls):
        run()
    return (clock() - started) * 1e3 / calls


def _a_call(replay: Candidate, calls: int) -> float:
    return gpu.milliseconds(replay) / calls


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _spread(values: Sequence[float]) -> float:
    first, _, third = statistics.quantiles(values, n=4)
    return third - first


def facts(device: torch.device) -> dict[str, object]:
    """Of every row: the machine, versions, commit and date."""
    return {
        "device": torch.cuda.get_device_name(device) if gpu.is_gpu(device) else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "commit": commit(),
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
    }


def results_file() -> Path:
    """Where rows go: in the folder that the variable names, else beside this file."""
    folder = os.environ.get(OUTPUT)
    return Path(folder) / RESULTS.name if folder else RESULTS


def save(results: Sequence[Any], path: Path) -> None:
    """Append rows, of one dataclass, to a CSV file, which gets a header where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[column.name for column in fields(results[0])])
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in results)


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def processor() -> str:
    """The name of the CPU, which may be that of several kinds, and the vectors that PyTorch uses there."""
    name = "cpu"
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def commit() -> str:
    """The commit at hand, "-dirty" where it is not quite that; where there is no repository, what `COMMIT` says."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = ""
    if shutil.which(command[0]) is not None:
        found = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False
        ).stdout.strip()
    return found or os.environ.get(COMMIT) or "unknown"
