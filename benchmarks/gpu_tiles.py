"""Every tile there is for each kernel of products, timed on a GPU; the fastest become the shipped table.

What is swept are the product's own tables (`pac_ops.backends.triton.cycles`), a row a tile.
"""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found"

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from benchmarks import gpu
from benchmarks.harness import Workload, facts, rows_of, save
from pac_ops.backends import choose
from pac_ops.backends.triton import cycles, winners
from pac_ops.backends.triton.launch import PLANS
from pac_ops.backends.triton.measured import MEASURED
from pac_ops.backends.triton.tiles import NARROW, TF32, Cycles, Tiles
from pac_ops.geometry import Window

FILE = "tiles.csv"
SHAPES = [(b, c, s) for b in (1, 8) for c, s in ((64, 256), (128, 128), (256, 64), (256, 128), (512, 32), (512, 64))]
# How factors are multiplied, and whether images are channels-last: 16-bit images of products always are.
KINDS = ((NARROW, "bfloat16", True), (TF32, "tf32", True), (TF32, "tf32", False))
TABLES: dict[str, Cycles] = {
    winners.SUM: cycles.SUM,
    winners.WITH_GRADIENT: cycles.WITH_GRADIENT,
    winners.OF_WEIGHT: cycles.OF_WEIGHT,
}
_WINDOW = Window((3, 3), padding=(1, 1))


@dataclass(frozen=True)
class Row:
    """One tile of one kernel at one shape; or why it did not run."""

    table: str
    how: str
    last: bool
    workload: str
    pixels: int
    inner: int
    outer: int
    tile: str
    ms: float
    why: str
    chip: str
    device: str
    threads: int
    torch: str
    triton: str
    commit: str
    date: str


@dataclass(frozen=True)
class Job:
    """One kernel at one shape, with every tile."""

    table: str
    how: str
    last: bool
    workload: Workload

    @property
    def tiles(self) -> Mapping[Tiles, int]:
        """Those that the product may choose from."""
        return TABLES[self.table][self.how]

    @property
    def pixels(self) -> int:
        """Of the output."""
        return self.workload.batch * self.workload.size**2

    def runs(self) -> Iterator[tuple[Tiles, Callable[[], Any]]]:
        """Calls, each with one tile alone to choose from: to be called before the next is asked for."""
        call, table = _call(self), TABLES[self.table]
        for tile, taken in self.tiles.items():
            PLANS.clear()
            with (
                mock.patch.dict(table, {self.how: {tile: taken}}),
                mock.patch.dict(MEASURED, clear=True),
            ):
                yield tile, call
        PLANS.clear()


def tensors(w: Workload, *, last: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, K, weight and the output's gradient, at random."""
    laid = torch.channels_last if last else torch.contiguous_format

    def image(*shape: int) -> Tensor:
        return torch.randn(shape, device=gpu.DEVICE).to(w.dtype, memory_format=laid)

    x, grad = (image(w.batch, w.channels, w.size, w.size) for _ in range(2))
    kernel = torch.rand(w.batch, 1, w.window, w.window, w.size, w.size, device=gpu.DEVICE)
    return x, kernel, image(w.channels, w.channels, w.window, w.window), grad


def _call(job: Job) -> Callable[[], Any]:
    backend = choose.load("triton")
    x, kernel, weight, grad = tensors(job.workload, last=job.last)
    if job.table == winners.SUM:
        return partial(backend.pacconv2d, x, kernel, weight, None, _WINDOW, 1)
    of_weight = job.table == winners.OF_WEIGHT
    needs = (not of_weight, not of_weight, of_weight)
    return partial(backend.pacconv2d_backward, grad, x, kernel, weight, _WINDOW, 1, needs)


def jobs() -> Iterator[tuple[str, Job]]:
    """Each with its precision."""
    for how, precision, last in KINDS:
        for table in TABLES:
            for batch, channels, size in SHAPES:
                dtype, _ = gpu.PRECISIONS[precision]
                yield precision, Job(table, how, last, Workload(batch, channels, size, dtype=dtype))


def sweep(folder: Path) -> bool:
    """Rows of all jobs that the folder has none of; whether every tile ran."""
    path, about = folder / FILE, {"chip": _chip(), **facts(gpu.DEVICE)}
    there = {(row["table"], row["how"], row["last"], row["workload"]) for row in rows_of(path)}
    for precision, job in jobs():
        w = job.workload
        if (job.table, job.how, str(job.last), w.id) in there:
            continue
        rows = []
        with gpu.in_precision(precision):
            for tile, run in job.runs():
                ms, why = float("nan"), ""
                try:
                    ms = triton.testing.do_bench(run, warmup=3, rep=12, return_mode="median")
                except Exception as error:  # noqa: BLE001 (a tile that does not run must not hide the others)
                    why = f"{type(error).__name__}: {error}".splitlines()[0]
                shape = (job.pixels, w.channels, w.channels)
                tiled = " ".join(map(str, tile))
                rows.append(Row(job.table, job.how, job.last, w.id, *shape, tiled, ms, why, **about))  # type: ignore[arg-type]
        save(rows, path)  # those of a job together: a second call has all or none
    return not any(row["why"] for row in rows_of(path))


def _chip() -> str:
    """Compute capability and multiprocessors, which is what the product tells chips apart by."""
    found = torch.cuda.get_device_properties(gpu.DEVICE)
    return f"{found.major} {found.minor} {found.multi_processor_count}"


def fastest(rows: list[dict[str, str]]) -> tuple[tuple[int, ...] | None, dict[winners.Key, Tiles]]:
    """The tile of the shortest time of each job; of the chip that was measured last."""
    if not rows:
        return None, {}
    chip, best = rows[-1]["chip"], dict[winners.Key, tuple[float, Tiles]]()
    for row in rows:
        if row["why"] or row["chip"] != chip:
            continue
        last = row["last"] == "True"
        sizes = (int(row["pixels"]), int(row["inner"]), int(row["outer"]))
        key = winners.key(row["table"], row["how"], last=last, pixels=sizes[0], inner=sizes[1], outer=sizes[2])
        mine = (float(row["ms"]), tuple(map(int, row["tile"].split())))
        best[key] = min(best.get(key, mine), mine)
    return tuple(map(int, chip.split())), {key: tile for key, (_, tile) in best.items()}
