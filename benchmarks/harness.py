"""Times candidates against each other in one process, and keeps the results.

Candidates are run in turn, round after round, so that what else the machine does falls on all of them alike, and
the median is taken. Rows are long-format: one a candidate and mode.
"""

import csv
import datetime as dt
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
Candidate = Callable[[], object]


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
    dtype: str = "float32"

    @property
    def id(self) -> str:
        """Such as b1-c256-64x64-k3."""
        text = f"b{self.batch}-c{self.channels}-{self.size}x{self.size}-k{self.window}"
        for letter, value in (("s", self.stride), ("d", self.dilation), ("g", self.groups)):
            text += f"-{letter}{value}" if value != 1 else ""
        return text if self.dtype == "float32" else f"{text}-{self.dtype}"

    @property
    def padding(self) -> int:
        """The padding that keeps the size at stride 1."""
        return self.window // 2 * self.dilation


@dataclass(frozen=True)
class Row:
    """One measurement."""

    op: str
    backend: str
    mode: str  # forward, or forward+backward
    dtype: str
    workload: str
    median: float
    spread: float  # between the first and the third quartile
    unit: str
    device: str
    threads: int
    torch: str
    triton: str
    commit: str
    date: str


def measure(candidates: dict[str, Candidate], *, rounds: int, warmup: int = 2) -> dict[str, tuple[float, float]]:
    """Median and interquartile range, in milliseconds, of each candidate over interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for round_ in range(warmup + rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if round_ >= warmup:
                times[name].append((time.perf_counter() - started) * 1e3)
    result = {}
    for name, values in times.items():
        first, _, third = statistics.quantiles(values, n=4)
        result[name] = (statistics.median(values), third - first)
    return result


def rows(op: str, mode: str, workload: Workload, timings: dict[str, tuple[float, float]]) -> list[Row]:
    """Timings as rows, with all that is needed to read them later."""
    return [
        Row(
            op=op,
            backend=name,
            mode=mode,
            dtype=workload.dtype,
            workload=workload.id,
            median=round(median, 4),
            spread=round(spread, 4),
            unit="ms",
            device=_device(),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            triton=_version("triton"),
            commit=_commit(),
            date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        )
        for name, (median, spread) in timings.items()
    ]


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


def _device() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "cpu"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)  # noqa: S603
    return done.stdout.strip() or "unknown"
