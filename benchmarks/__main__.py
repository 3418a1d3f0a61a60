"""`python -m benchmarks`: measure, print a table, keep the rows."""

import math
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import pacconv2d
from benchmarks.harness import RESULTS, Row, geometric_mean, save

FASTER_CONV = "faster conv"


@click.command()
@click.option("--quick", is_flag=True, help="Three shapes only: about two minutes on 2 cores.")
@click.option("--rounds", default=15, type=click.IntRange(2), help="Interleaved runs of each candidate.")
@click.option("--threads", default=2, type=click.IntRange(1), help="CPU threads.")
@click.option(
    "--output", type=click.Path(path_type=Path), default=RESULTS / "pacconv2d.csv", help="CSV to append to."
)
@click.option("--no-save", is_flag=True, help="Only print.")
def main(quick: bool, rounds: int, threads: int, output: Path, no_save: bool) -> None:
    """Time pixel-adaptive convolution on the CPU against its peers, in one run."""
    torch.set_num_threads(threads)
    workloads = pacconv2d.QUICK if quick else pacconv2d.ALL
    console = Console(width=130)
    progress = track(pacconv2d.run(workloads, rounds), "measuring", total=None, console=Console(stderr=True))
    results = list(progress)
    for op in pacconv2d.OPS:
        for mode in ("forward", "forward+backward"):
            console.print(
                _table(op, mode, [group for group in results if (group[0].op, group[0].mode) == (op, mode)])
            )
    if not no_save:
        save([row for group in results for row in group], output)
        console.print(f"rows appended to {output}")


def _table(op: str, mode: str, groups: list[list[Row]]) -> Table:
    table = Table(title=f"{op}, {mode}: median ms, and how many times our own time")
    table.add_column("workload")
    names = [row.backend for row in groups[0]]
    if set(pacconv2d.CONVS) <= set(names):
        names.append(FASTER_CONV)
    for name in names:
        table.add_column(name, justify="right")
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for group in groups:
        medians = {row.backend: row.median for row in group}
        medians[FASTER_CONV] = min(medians.get(name, math.inf) for name in pacconv2d.CONVS)
        cells = [group[0].workload]
        for name in names:
            ratio = medians[name] / medians[pacconv2d.OURS]
            ratios[name].append(ratio)
            cells.append(f"{medians[name]:.2f} ({ratio:.2f})")
        table.add_row(*cells)
    table.add_section()
    table.add_row("geometric mean", *(f"{geometric_mean(values):.2f}" for values in ratios.values()))
    return table


if __name__ == "__main__":
    main()
