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
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results" / "benchmarks.csv"
OUTPUT = "OUT"  # a variable that may name the folder for results
FORWARD, BOTH = "forward", "forward+backward"
Candidate = Callable[[], object]
_LEAST_ROUNDS = 3
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
    graphs: bool = False  # time what a CUDA graph of a call takes on the device, without the Python before it

    @classmethod
    def at(cls, device: str, seconds: float, rounds: int, *, graphs: bool = False) -> "Machine":
        """This machine, with its versions."""
        on = torch.device(device)
        facts = {
            "device": torch.cuda.get_device_name(on) if on.type == "cuda" else processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "triton": _version("triton"),
            "commit": commit(),
            "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        }
        return cls(on, seconds, rounds, facts, graphs)

    def measure(self, case: Case) -> list[Row]:
        """Rows of one case, a row a candidate."""
        with case.around():
            candidates = case.make()
            if self.graphs:
                graphs = {name: captured(run) for name, run in candidates.items()}
                candidates = {name: graph for name, graph in graphs.items() if graph is not None}
            times = self._times(candidates, case.calls, own=case.own_time)
            peaks = {name: self._peak(run) for name, run in candidates.items()}
        return [
            Row(
                case.op,
                name,
                f"{case.mode}, graphed" if self.graphs else case.mode,
                str(case.dtype).removeprefix("torch."),
                case.workload,
                round(statistics.median(values), 4),
                round(_spread(values), 4),
                "ms",
                peaks[name],
                case.operations,
                case.least_bytes,
                **self.facts,  # type: ignore[arg-type]
            )
            for name, values in times.items()
        ]

    def _times(self, candidates: Mapping[str, Candidate], calls: int, *, own: bool) -> dict[str, list[float]]:
        """Milliseconds of a call of each candidate over interleaved rounds."""
        times: dict[str, list[float]] = {name: [] for name in candidates}
        for run in candidates.values():  # compiles, tunes and warms up
            self._time(run, calls, own=own)
        order, started = random.Random(0), time.perf_counter()  # noqa: S311
        for done in range(self.rounds):
            if done >= _LEAST_ROUNDS and time.perf_counter() - started > self.seconds:
                break
            # In another order each round: whoever always followed the same peer would find its caches.
            for name in order.sample(list(candidates), len(candidates)):
                times[name].append(self._time(candidates[name], calls, own=own))
        return times

    def _time(self, run: Candidate, calls: int, *, own: bool) -> float:
        if self.device.type == "cuda" and not own:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / calls
        clock = time.thread_time if own else time.perf_counter
        started = clock()
        for _ in range(calls):
            run()
        return (clock() - started) * 1e3 / calls

    def _peak(self, run: Candidate) -> int:
        """Bytes allocated at most at one time beyond those before, scratch space of libraries included."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            run()
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - before
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


def captured(run: Candidate) -> Candidate | None:
    """The same work on the device, as the replay of a CUDA graph; None where it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        return None
    replay: Candidate = graph.replay
    return replay


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _spread(values: Sequence[float]) -> float:
    first, _, third = statistics.quantiles(values, n=4)
    return third - first


def results_file() -> Path:
    """Where rows go: in the folder that the variable names, else beside this file."""
    folder = os.environ.get(OUTPUT)
    return Path(folder) / RESULTS.name if folder else RESULTS


def save(results: Sequence[Row], path: Path) -> None:
    """Append rows to a CSV file, which gets a header where it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(Row.__dataclass_fields__))
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in results)


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios."""
    return math.exp(statistics.fmean(math.log(value) for value in values))


def processor() -> str:
    """The name of the CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "cpu"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def commit() -> str:
    """The commit at hand, "-dirty" where it is not quite that."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)  # noqa: S603
    return done.stdout.strip() or "unknown"
