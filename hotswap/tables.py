"""Plain-text tables for what the library prints."""

from collections.abc import Iterable, Sequence
from io import StringIO

_MAX_WIDTH = 1000  # never wrap a path because the terminal that will show it is unknown here


def render(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a header, one line a row, columns aligned; cells that are None stay empty.

    Columns whose cells are all numbers (or empty) are aligned to the right.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    cells = [["" if c is None else c for c in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) or row[index] == "" for row in cells)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        table.add_row(*(_text(cell) for cell in row))
    buffer = StringIO()
    Console(file=buffer, width=_MAX_WIDTH, color_system=None, markup=False, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines() if line.strip())


def _text(cell: object) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def filled(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table without columns that would be empty."""
    kept = [index for index in range(len(columns)) if any(row[index] is not None for row in rows)]
    return render([columns[index] for index in kept], [[row[index] for index in kept] for row in rows])
