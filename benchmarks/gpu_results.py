"""`python -m benchmarks.gpu_results FOLDER`: take in what `gpu_check` brought back from a GPU machine.

Copies its files to `benchmarks/results/gpu`, makes the fastest tiles those that the product takes
(`pac_ops/backends/triton/measured.py`), and writes the tables about a GPU in docs/performance.md. All of it is to be
committed.
"""

import json
import shutil
from pathlib import Path

import click

from benchmarks import gpu_page, gpu_tiles
from benchmarks.gpu_check import FOLDER, STATE
from benchmarks.harness import rows_of
from benchmarks.rows import PAGE, with_table
from pac_ops.backends.triton import measured, winners
from pac_ops.backends.triton.tiles import Tiles

TABLE = Path(measured.__file__)


def written(chip: tuple[int, ...] | None, won: dict[winners.Key, Tiles]) -> str:
    """The module with the table of the fastest tiles of a chip."""
    docstring, _, _ = TABLE.read_text().partition("\n")
    keys, tile = "tuple[str, str, bool, int, int, int]", "tuple[int, ...]"
    lines = [docstring, "", f"CHIP: tuple[int, int, int] | None = {chip}  # compute capability and multiprocessors"]
    opening = f"MEASURED: dict[{keys}, {tile}] = {{"
    if not won:
        return "\n".join([*lines, f"{opening}}}\n"])
    entries = []
    for key, tile_of_key in won.items():
        values = ", ".join(json.dumps(x) if isinstance(x, str) else str(x) for x in key)  # in double quotes
        entries.append(f"    ({values}): {tile_of_key},")
    return "\n".join([*lines, opening, *entries, "}\n"])


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), default=FOLDER)
def main(folder: Path) -> None:
    """Take in the files of FOLDER; by default those that were taken in before."""
    if not (folder / STATE).exists():
        raise click.ClickException(f"{folder} is no folder of `gpu_check`: it has no {STATE}")
    if folder.resolve() != FOLDER.resolve():
        shutil.rmtree(FOLDER, ignore_errors=True)
        shutil.copytree(folder, FOLDER)
    chip, won = gpu_tiles.fastest(rows_of(FOLDER / gpu_tiles.FILE))
    TABLE.write_text(written(chip, won))
    page = PAGE.read_text()
    for name, table in gpu_page.tables(FOLDER):
        page = with_table(page, name, table)
    PAGE.write_text(page)
    click.echo(f"{len(won)} tiles in {TABLE.name}; {PAGE.name} written; commit these and {FOLDER}")


if __name__ == "__main__":
    main()
