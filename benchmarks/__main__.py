"""`python -m benchmarks`: measure, print tables, keep the rows."""

import dataclasses
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import crf, exported, gpu, launching, limits, networks, operators, resizing, small
from benchmarks.harness import Case, Machine, Row, geometric_mean, results_file, rows_of, save

FASTER_CONV = "faster conv"
SUITES = ("limits", "operators", "resizing", "networks", "crf", "growth", "exported", "small", "launch")
OF_ANY_DTYPE = ("limits", "operators", "networks")  # the others are of their own, and measured once


@click.command()
@click.argument("suites", nargs=-1, type=click.Choice(SUITES))
@click.option("--only", default="*", help="Only workloads that match, such as 'b1-*'.")
@click.option("--quick", is_flag=True, help="Operators at three shapes only: under three minutes on 2 cores.")
@click.option("--device", default="cpu", help="Such as cpu or cuda.")
@click.option(
    "--dtype",
    "dtypes",
    default=["float32"],
    multiple=True,
    type=click.Choice(list(gpu.PRECISIONS)),
    help="Of activations and weights; several, one after the other. On a GPU tf32 multiplies float32 in TF32.",
)
@click.option("--graphs", is_flag=True, help="Time CUDA graphs of the calls too: what the device takes.")
@click.option("--rounds", default=15, type=click.IntRange(3), help="Interleaved runs of each candidate, at most.")
@click.option("--seconds", default=20.0, help="After so long a case gets no further round, once it has had three.")
@click.option("--threads", default=2, type=click.IntRange(1), help="CPU threads.")
@click.option("--output", type=click.Path(path_type=Path), default=results_file, help="CSV to append to.")
@click.option("--no-save", is_flag=True, help="Only print.")
@click.option("--missing", is_flag=True, help="Only cases that the CSV has no rows of.")
def main(
    suites: tuple[str, ...],
    only: str,
    quick: bool,
    device: str,
    dtypes: tuple[str, ...],
    graphs: bool,
    rounds: int,
    seconds: float,
    threads: int,
    output: Path,
    no_save: bool,
    missing: bool,
) -> None:
    """Time operators, layers and networks against their peers, in one run: SUITES, or all of them.

    A case that fails is printed and does not stop the others; the exit status is 1 then.
    """
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    machine = Machine.at(device, 2.0 if quick else seconds, rounds, graphs=graphs)
    console = Console(width=150)
    chosen = suites or (("limits", "operators") if quick else SUITES)
    cases = [case for case in _chosen(chosen, machine.device, dtypes, quick) if fnmatch(case.workload, only)]
    if missing:
        there = {(row["op"], row["mode"], row["workload"], row["dtype"]) for row in rows_of(output)}
        cases = [case for case in cases if case.key not in there]
    results, failed = [], 0
    for case in track(cases, "measuring", console=Console(stderr=True)):
        try:
            results.append(machine.measure(case))
        except Exception:  # noqa: BLE001 (whatever it is, time on a lent machine is for the other cases)
            failed += 1
            print(*case.key, traceback.format_exc(), sep="\n", file=sys.stderr, flush=True)
            continue
        if not no_save:
            save(results[-1], output)
    tables: dict[str, list[list[Row]]] = {}
    for group in results:
        for row in group:
            rows = tables.setdefault(f"{row.op}, {row.mode}, {row.dtype}", [])
            if not (rows and rows[-1][0].workload == row.workload):
                rows.append([])
            rows[-1].append(row)
    for what, groups in tables.items():
        _print(console, what, groups)
    if not no_save:
        console.print(f"rows appended to {output}")
    if failed:
        sys.exit(1)


def _chosen(suites: Sequence[str], device: torch.device, dtypes: Sequence[str], quick: bool) -> Iterator[Case]:
    """The cases of suites, of every dtype where they are of any."""
    for number, dtype in enumerate(dtypes):
        for suite in suites:
            if suite in OF_ANY_DTYPE:
                for case in _cases(suite, device, gpu.PRECISIONS[dtype][0], quick):
                    yield dataclasses.replace(case, precision=dtype) if gpu.is_gpu(device) else case
            elif number == 0:
                yield from _cases(suite, device, torch.float32, quick)


def _cases(suite: str, device: torch.device, dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    workloads = operators.QUICK if quick else operators.TABLE
    of: dict[str, Callable[[], Iterator[Case]]] = {
        "limits": lambda: limits.cases(device, dtype),
        "operators": lambda: operators.cases([dataclasses.replace(w, dtype=dtype) for w in workloads], device),
        "resizing": lambda: resizing.cases(device),
        "networks": lambda: networks.cases(device, dtype),
        "launch": lambda: launching.cases(device),
        "crf": lambda: crf.cases(device),
        "growth": lambda: operators.growth_cases(device),
        "small": lambda: small.cases(device),
        "exported": lambda: iter(()) if gpu.is_gpu(device) else exported.cases(),  # by onnxruntime's CPU build
    }
    return of[suite]()


def _print(console: Console, what: str, groups: list[list[Row]]) -> None:
    """Times and peaks, with each candidate's ratio to the first, which is ours (or the plain network)."""
    names = [row.backend for row in groups[0]]
    own = names[0]
    if set(operators.CONVS) <= set(names):
        names.append(FASTER_CONV)
    table = Table(title=f"{what}: median ms, and how many times that of {own}; peak MiB")
    for name in ("workload", *names):
        table.add_column(name, justify="left" if name == "workload" else "right")
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for group in groups:
        if own not in (row.backend for row in group):  # no CUDA graph of it
            continue
        medians = {row.backend: row.median for row in group}
        peaks = {row.backend: row.peak_bytes for row in group}
        faster = min(operators.CONVS, key=lambda name: medians.get(name, math.inf))
        medians[FASTER_CONV], peaks[FASTER_CONV] = medians.get(faster, math.nan), peaks.get(faster, 0)
        cells = [group[0].workload]
        for name in names:
            if name not in medians:  # not every candidate is tried at every workload
                cells.append("")
                continue
            ratios[name].append(medians[name] / medians[own])
            digits = 2 if medians[own] > 1 else 4
            cells.append(f"{medians[name]:.{digits}f} ({ratios[name][-1]:.2f}; {peaks[name] / 2**20:.0f})")
        table.add_row(*cells)
    if len(groups) > 1:
        table.add_section()
        table.add_row("geometric mean", *(f"{geometric_mean(values):.2f}" for values in ratios.values()))
    console.print(table)


if __name__ == "__main__":
    main()
