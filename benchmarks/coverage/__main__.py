"""`python -m benchmarks.coverage`: convert every network there is, and keep a row for each."""

import fnmatch
import itertools
import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.coverage import tables
from benchmarks.coverage.networks import all_networks
from benchmarks.coverage.sweep import KINDS, NONE, OK, PLAIN, append, commit, read, sweep


@click.command()
@click.option("--swap", default="convolutions", type=click.Choice(list(KINDS)), help="What to swap; convolutions.")
@click.option("--only", multiple=True, metavar="GLOB", help="Such as 'timm:resnet*'. May be given again.")
@click.option("--shard", default="1/1", metavar="I/N", help="Every N-th network, from the I-th.")
@click.option("--limit", default=0, help="Stop after so many networks; 0: no limit.")
@click.option("--minutes", default=0.0, help="Start no further network after so long; 0: no limit.")
@click.option("--redo", is_flag=True, help="Also networks that have a row of this commit.")
@click.option("--missing", is_flag=True, help="Only networks without any row that is ok or does not count.")
@click.option("--jobs", default=1, type=click.IntRange(1), help="Networks at a time.")
@click.option("--seconds", default=300, type=click.IntRange(1), help="Of the processor, for one network.")
@click.option("--gigabytes", default=10.0, help="Of memory, for one network.")
@click.option("--output", type=click.Path(path_type=Path), help="CSV to append to; by default that of all results.")
@click.option("--table", type=click.Path(path_type=Path), help="Only write this page from the rows there are.")
def main(
    swap: str,
    only: tuple[str, ...],
    shard: str,
    limit: int,
    minutes: float,
    redo: bool,
    missing: bool,
    jobs: int,
    seconds: int,
    gigabytes: float,
    output: Path | None,
    table: Path | None,
) -> None:
    """Convert, run, differentiate and revert every network of timm, torchvision, smp and transformers."""
    console = Console(width=150)
    if table is not None:
        table.write_text(tables.page(*(read(kind.results) for kind in KINDS.values())))
        console.print(f"{table} written")
        return
    kind = KINDS[swap]
    output = output or kind.results
    rows, at = read(output), commit()  # now, as the folder may move on to another commit meanwhile
    first, count = (int(part) for part in shard.split("/"))
    chosen = [n for n in all_networks() if not only or any(fnmatch.fnmatch(n.id, glob) for glob in only)]
    chosen = chosen[first - 1 :: count]
    chosen = [n for n in chosen if redo or _is_due(rows.get(n.id), None if missing else at)][: limit or None]
    deadline = time.monotonic() + minutes * 60 if minutes else float("inf")
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[now]}"), console=console) as progress:
        task = progress.add_task("networks", total=len(chosen), now="")
        due = itertools.takewhile(lambda _: time.monotonic() < deadline, chosen)
        for row in sweep(kind, due, jobs=jobs, seconds=seconds, gigabytes=gigabytes):
            append(row, output)
            progress.update(task, advance=1, now=row.id)
            if row.outcome not in (OK, NONE):
                progress.console.print(f"{row.id}: {row.outcome}: {row.reason}", markup=False, highlight=False)
    console.print(tables.totals(read(output)))


def _is_due(row: dict[str, str] | None, at: str | None) -> bool:
    """Whether there is no row of this commit; without one, none that says all is well."""
    if row is None:
        return True
    return row["commit"] != at if at is not None else row["outcome"] not in (OK, NONE, PLAIN)


if __name__ == "__main__":
    main()
