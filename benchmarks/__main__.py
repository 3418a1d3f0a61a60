"""`python -m benchmarks`: measure, print tables, keep the rows."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import crf, exported, launching, limits, networks, operators, resizing, small
from benchmarks.harness import Case, Machine, Row, geometric_mean, results_file, save

FASTER_CONV = "faster conv"
SUITES = ("limits", "operators", "resizing", "networks", "crf", "growth", "exported", "small", "launch")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@click.command()
@click.argument("suites", nargs=-1, type=click.Choice(SUITES))
@click.option("--only", default="*", help="Only workloads that match, such as 'b1-*'.")
@click.option("--quick", is_flag=True, help="Operators at three shapes only: under three minutes on 2 cores.")
@click.option("--device", default="cpu", help="Such as cpu or cuda.")
@click.option("--dtype", default="float32", type=click.Choice(list(DTYPES)), help="Of activations and weights.")
@click.option("--graphs", is_flag=True, help="Time CUDA graphs of the calls: what the device takes.")
@click.option("--rounds", default=15, type=click.IntRange(3), help="Interleaved runs of each candidate, at most.")
@click.option("--seconds", default=20.0, help="After so long a case gets no further round, once it has had three.")
@click.option("--threads", default=2, type=click.IntRange(1), help="CPU threads.")
@click.option("--output", type=click.Path(path_type=Path), default=results_file, help="CSV to append to.")
@click.option("--no-save", is_flag=True, help="Only print.")
def main(
    suites: tuple[str, ...],
    only: str,
    quick: bool,
    device: str,
    dtype: str,
    graphs: bool,
    rounds: int,
    seconds: float,
    threads: int,
    output: Path,
    no_save: bool,
) -> None:
    """Time operators, layers and networks against their peers, in one run: SUITES, or all of them."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    machine = Machine.at(device, 2.0 if quick else seconds, rounds, graphs=graphs)
    if device == "cuda" and dtype == "float32":
        torch.set_float32_matmul_precision("high")  # tf32, as the convolutions it is compared with
    console = Console(width=150)
    chosen = suites or (("limits", "operators") if quick else SUITES)
    of_suites = (_cases(suite, machine.device, DTYPES[dtype], quick) for suite in chosen)
    cases = [case for case in itertools.chain.from_iterable(of_suites) if fnmatch(case.workload, only)]
    results = []
    for case in track(cases, "measuring", console=Console(stderr=True)):
        results.append(machine.measure(case))
        if not no_save:
            save(results[-1], output)
    tables: dict[tuple[str, str], list[list[Row]]] = {}
    for group in results:
        tables.setdefault((group[0].op, group[0].mode), []).append(group)
    for (op, mode), groups in tables.items():
        _print(console, op, mode, groups)
    if not no_save:
        console.print(f"rows appended to {output}")


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
        "exported": lambda: exported.cases() if device.type == "cpu" else iter(()),  # by onnxruntime's CPU build
    }
    return of[suite]()


def _print(console: Console, op: str, mode: str, groups: list[list[Row]]) -> None:
    """Times and peaks, with each candidate's ratio to the first, which is ours (or the plain network)."""
    names = [row.backend for row in groups[0]]
    own = names[0]
    if set(operators.CONVS) <= set(names):
        names.append(FASTER_CONV)
    table = Table(title=f"{op}, {mode}: median ms, and how many times that of {own}; peak MiB")
    for name in ("workload", *names):
        table.add_column(name, justify="left" if name == "workload" else "right")
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for group in groups:
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
