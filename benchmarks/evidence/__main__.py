"""`python -m benchmarks.evidence`: make the runs that are missing, and the page that tells what came of all."""

import fnmatch
from pathlib import Path

import click
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.evidence import config, page, results
from benchmarks.evidence.runs import carry_out, due, known
from hotswap.errors import HotswapError


@click.group()
def main() -> None:
    """What does swapping buy?"""


@main.command()
@click.argument("names", nargs=-1, type=click.Choice(config.names()))
@click.option("--arm", "globs", multiple=True, metavar="GLOB", help="These arms alone. May be given again.")
@click.option("--jobs", default=1, type=click.IntRange(1), help="Runs beside each other.")
@click.option("--threads", default=1, type=click.IntRange(1), help="Of each.")
@click.option("--folder", default="out/evidence", type=click.Path(path_type=Path), help="For trained starts.")
def run(names: tuple[str, ...], globs: tuple[str, ...], jobs: int, threads: int, folder: Path) -> None:
    """Make the runs of experiments that have no row yet, which can be stopped at any time; all by default."""
    try:
        for name in names or config.names():
            _run_one(name, globs, jobs, threads, folder)
    except (HotswapError, FileNotFoundError) as error:  # a package with weights or data that is not installed
        raise click.ClickException(str(error)) from error


def _run_one(name: str, globs: tuple[str, ...], jobs: int, threads: int, folder: Path) -> None:
    experiment, rows = config.read(name), results.read(name)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[now]}"), console=Console(width=150)) as progress:
        total = sum(
            len(experiment.rates) + experiment.seeds if arm.trained else 1 for arm in experiment.arms.values()
        )
        task = progress.add_task(name, total=total, completed=len(known(experiment, rows)), now="")
        # The search, then what is compared at the rates it found.
        while runs := [r for r in due(name, experiment, rows) if _is_asked_for(r.arm, globs)]:
            for row in carry_out(runs, folder, jobs, threads):
                rows = [old for old in rows if (old.arm, old.seed, old.rate) != (row.arm, row.seed, row.rate)]
                rows.append(row)
                results.write(name, experiment, rows)
                progress.update(task, advance=1, now=f"{row.arm} {row.seed}")


def _is_asked_for(arm: str, globs: tuple[str, ...]) -> bool:
    return not globs or any(fnmatch.fnmatch(arm, glob) for glob in globs)


@main.command(name="page")
def write_page() -> None:
    """Write the tables and plots of docs/evidence.md from the rows there are."""
    for path in page.write():
        click.echo(f"{path} written")


if __name__ == "__main__":
    main()
