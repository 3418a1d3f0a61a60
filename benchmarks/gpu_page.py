"""The tables of docs/performance.md about a GPU, from the rows that `gpu_check` brought back: none, no figures."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean

from benchmarks import crf, gpu_correct, launching, markdown, networks, operators, resizing
from benchmarks.harness import BOTH, FORWARD, GRAPHED, RESULTS, geometric_mean, rows_of
from benchmarks.operators import DEFORM, INSERTED, LAST, UNFOLD
from benchmarks.rows import OURS, Results, Row, faster_conv, faster_own, ms, peak

DTYPES = ("bfloat16", "tf32")
INFERENCE, TRAINING = "inference", "training step"
WIDE, WIDE_BATCH = 256, 8  # channels from which, and the batch at which, the kernel itself is judged


@dataclass(frozen=True)
class Figure:
    """A figure, and from how many of the measurements that it is of."""

    value: float
    found: int
    wanted: int = 1


@dataclass(frozen=True)
class Target:
    """What issue and page ask for: at most `bound`, or at least."""

    name: str
    bound: float
    unit: str
    figure: Callable[[Results], Figure | None]
    at_least: bool = False

    def met(self, figure: Figure | None) -> str:
        """Whether it is; of a figure from a part of its measurements nothing is said."""
        if figure is None:
            return ""
        if figure.found < figure.wanted:
            return f"{figure.found} of {figure.wanted} measured"
        within = figure.value >= self.bound if self.at_least else figure.value <= self.bound
        return "met" if within else "not met"


def ours(rows: dict[str, Row]) -> Row | None:
    """Our row in its better layout."""
    return faster_own(rows) if {OURS, OURS + LAST} & rows.keys() else None


def _over(mode: str, ratio: Callable[[Row, Row], float], *, wide: bool = False) -> Callable[[Results], Figure | None]:
    """The geometric mean over the table of shapes of a ratio of ours to the convolution."""

    def figure(results: Results) -> Figure | None:
        table = [w for w in operators.TABLE if not wide or (w.batch == WIDE_BATCH and w.channels >= WIDE)]
        wanted, ratios = {w.id for w in table}, []
        for workload, rows in results.of("pacconv2d", mode):
            own = ours(rows)
            if workload in wanted and own is not None and set(operators.CONVS) & set(rows):
                ratios.append(ratio(own, faster_conv(rows)))
        return Figure(geometric_mean(ratios), len(ratios), len(wanted)) if ratios else None

    return figure


def _times(own: Row, other: Row) -> float:
    return ms(own) / ms(other)


def _memory(own: Row, other: Row) -> float:
    return peak(own) / peak(other)


def _unfolded(results: Results) -> Figure | None:
    pairs = [(rows[UNFOLD], ours(rows)) for _, rows in results.of("pacconv2d", FORWARD + GRAPHED) if UNFOLD in rows]
    ratios = [_times(unfold, own) for unfold, own in pairs if own is not None]
    wanted = sum(w.batch == 1 for w in operators.TABLE)
    return Figure(geometric_mean(ratios), len(ratios), wanted) if ratios else None


def _kernel(results: Results) -> Figure | None:
    for workload, rows in results.of("packernel2d", FORWARD + GRAPHED):
        if workload == operators.FOR_KERNEL.id and {OURS, operators.CONV} <= set(rows):
            return Figure(100 * _times(rows[OURS], rows[operators.CONV]), 1)
    return None


def _better(rows: dict[str, Row], name: str) -> Row | None:
    return min((rows[each] for each in (name, name + networks.LAST) if each in rows), key=ms, default=None)


def _network(mode: str) -> Callable[[Results], Figure | None]:
    def figure(results: Results) -> Figure | None:
        for _, rows in results.of("FCN-8s", mode + GRAPHED):
            swapped, plain = _better(rows, networks.SWAPPED), _better(rows, networks.PLAIN)
            if swapped is not None and plain is not None:
                return Figure(_times(swapped, plain), 1)
        return None

    return figure


def _crf(results: Results) -> Figure | None:
    for _, rows in results.of("PacCRF", FORWARD + GRAPHED):
        if OURS in rows:
            return Figure(ms(rows[OURS]), 1)
    return None


def _eager(results: Results) -> Figure | None:
    for _, rows in results.of(f"{launching.OP}pacconv2d", FORWARD):
        if {OURS, launching.STOCK} <= set(rows):
            return Figure(1e3 * (ms(rows[OURS]) - ms(rows[launching.STOCK])), 1)
    return None


_WIDE = f"forward, {WIDE} channels and more at batch {WIDE_BATCH}"
TARGETS = (
    Target("forward", 1.25, "of cuDNN's time", _over(FORWARD + GRAPHED, _times)),
    Target(_WIDE, 1.10, "of cuDNN's time", _over(FORWARD + GRAPHED, _times, wide=True)),
    Target("forward + backward", 1.40, "of cuDNN's time", _over(BOTH + GRAPHED, _times)),
    Target("memory of a step", 1.10, "of cuDNN's", _over(BOTH, _memory)),
    Target("unfold + einsum", 3.0, "of our time", _unfolded, at_least=True),
    Target("K at 128 x 128, batch 8", 5.0, "% of a 256-channel convolution", _kernel),
    Target("FCN-8s, inference", 1.05, "of the plain network's time", _network(INFERENCE)),
    Target("FCN-8s, training step", 1.10, "of the plain network's time", _network(TRAINING)),
    Target("PAC-CRF", 10.0, "ms", _crf),
    Target("a call, eager", 30.0, "us above a convolution's", _eager),
)


def of_folder(folder: Path) -> dict[str, Results]:
    """Rows by dtype; those of float32 that say nothing else are in TF32 where convolutions are, PyTorch's default."""
    rows = rows_of(folder / RESULTS.name)
    device = rows[-1]["device"] if rows else ""
    own = ("PacCRF", "pacresize2d", *(row["op"] for row in rows if row["op"].startswith(launching.OP)))
    named = [{**row, "dtype": "tf32"} if row["dtype"] == "float32" and row["op"] in own else row for row in rows]
    return {dtype: Results(named, device, dtype) for dtype in DTYPES}


def targets(by_dtype: dict[str, Results]) -> str:
    """Each target, what was measured, and whether it is met."""
    table = []
    for target in TARGETS:
        cells = [target.name, f"{'>=' if target.at_least else '<='} {target.bound:g} {target.unit}"]
        for dtype in DTYPES:
            figure = target.figure(by_dtype[dtype])
            cells += ["" if figure is None else f"{figure.value:.2f}", target.met(figure)]
        table.append(cells)
    return markdown.table(["what", "target", "bfloat16", "", "TF32", ""], table)


def layers(by_dtype: dict[str, Results], mode: str) -> str:
    """Each shape: device time by CUDA graphs, eager time, the peers' over ours, memory."""
    table = []
    for dtype in DTYPES:
        eager = dict(by_dtype[dtype].of("pacconv2d", mode))
        for workload, rows in by_dtype[dtype].of("pacconv2d", mode + GRAPHED):
            own, called = ours(rows), ours(eager.get(workload, {}))
            if own is None or called is None or not set(operators.CONVS) & set(rows):
                continue
            conv, conv_called = faster_conv(rows), faster_conv(eager[workload])
            peers = [f"{_times(rows[name], own):.1f}" if name in rows else "" for name in (UNFOLD, DEFORM)]
            in_layout = [f"{ms(rows[name]):.3f}" if name in rows else "" for name in (OURS, OURS + LAST)]
            table.append(
                [
                    workload,
                    dtype,
                    *in_layout,
                    f"{_times(own, conv):.2f}",
                    f"{ms(called):.3f}",
                    f"{_times(called, conv_called):.2f}",
                    *peers,
                    f"{peak(called) / 2**20:.0f} ({_memory(called, conv_called):.2f})",
                ]
            )
    columns = ["shape", "dtype", "ms", "ms, channels-last", "of cuDNN's", "eager, ms", "of cuDNN's eager"]
    columns += ["unfold + einsum, of ours", "`deform_conv2d`, of ours", "peak MiB (of cuDNN's)"]
    return markdown.table(columns, table)


# Operator; our row, and those it is compared with; modes.
_OTHERS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("packernel2d", OURS, (operators.CONV, UNFOLD), (FORWARD, BOTH)),
    ("pacconv_transpose2d", OURS, (operators.CONV, INSERTED), (FORWARD, BOTH)),
    ("pacresize2d", OURS, (resizing.BILINEAR, resizing.WIDE), (FORWARD, BOTH)),
    ("PacCRF", OURS, (crf.DENSE,), (FORWARD,)),
    ("FCN-8s", networks.SWAPPED, (networks.PLAIN,), (INFERENCE, TRAINING)),
    ("FCN-8s", networks.SWAPPED + LAST, (networks.PLAIN + LAST,), (INFERENCE, TRAINING)),
)


def others(by_dtype: dict[str, Results]) -> str:
    """The other operators, networks and the CRF: device time, eager time, and those of others over ours."""
    table = []
    for dtype in DTYPES:
        for op, own, peers, modes in _OTHERS:
            for mode in modes:
                graphed = dict(by_dtype[dtype].of(op, mode + GRAPHED))
                for workload, rows in by_dtype[dtype].of(op, mode):
                    if own not in rows:
                        continue
                    device = graphed.get(workload, {})
                    told = [
                        f"{name} {_times(found[name], found[own]):.2f}"
                        for name in peers
                        for found in (device if name in device and own in device else rows,)
                        if name in found
                    ]
                    name = f"{op}, {own}" if own != OURS else op
                    of_device = f"{ms(device[own]):.3f}" if own in device else "no graph"
                    table.append([name, workload, dtype, mode, of_device, f"{ms(rows[own]):.3f}", "; ".join(told)])
    return markdown.table(["what", "shape", "dtype", "", "ms", "eager, ms", "others' time, of ours"], table)


def correctness(folder: Path) -> str:
    """In each precision: how many results were compared, the largest error over its bound, and what is beyond it."""
    rows = rows_of(folder / gpu_correct.FILE)
    table = []
    for precision, group in groupby(sorted(rows, key=_precision), key=_precision):
        each = list(group)
        errors = [float(row["error"]) / float(row["bound"]) for row in each if not row["why"]]
        beyond = [f"{row['family']}, {row['result']}, {row['layout']}" for row in each if row["met"] != "True"]
        finite = [error for error in errors if math.isfinite(error)]
        mean = f"{fmean(finite):.2f}" if finite else ""
        worst = f"{max(finite):.2f}" if finite else ""
        table.append([precision, str(len(each)), mean, worst, "; ".join(beyond) or "none"])
    return markdown.table(["precision", "results", "error, of its bound: mean", "largest", "beyond"], table)


def _precision(row: Row) -> str:
    return row["precision"]


def tables(folder: Path) -> Iterator[tuple[str, str]]:
    """Each table's name on the page, and itself."""
    by_dtype = of_folder(folder)
    yield "gpu targets", targets(by_dtype)
    yield "gpu correctness", correctness(folder)
    yield "gpu forward", layers(by_dtype, FORWARD)
    yield "gpu forward+backward", layers(by_dtype, BOTH)
    yield "gpu others", others(by_dtype)
