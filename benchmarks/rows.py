"""Kept rows as the pages read them, and the page itself."""

from collections.abc import Iterator
from pathlib import Path

import click

from benchmarks import limits, operators
from benchmarks.harness import FORWARD

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
OURS = "pac_ops"  # whatever backend it was; with `operators.LAST` where that layout was measured by itself
Row = dict[str, str]
Key = tuple[str, str, str]  # op, mode, workload


class Results:
    """The last row of each measurement of one device and dtype."""

    def __init__(self, rows: list[Row], device: str, dtype: str):
        self.device = device
        self._of: dict[Key, dict[str, Row]] = {}
        for row in rows:
            if row["device"] == device and (row["dtype"] == dtype or row["op"] == limits.COPY):
                key = (row["op"], row["mode"], row["workload"])
                self._of.setdefault(key, {})[_named(row["backend"])] = row

    def of(self, op: str, mode: str) -> Iterator[tuple[str, dict[str, Row]]]:
        """Workload and rows by backend, in the order of measurement."""
        for (found, found_mode, workload), rows in self._of.items():
            if (found, found_mode) == (op, mode):
                yield workload, rows

    def rate(self, op: str, of: str) -> float:
        """Operations or bytes a millisecond that the machine reached."""
        rows = [row for _, by_backend in self.of(op, FORWARD) for row in by_backend.values()]
        return max(float(row[of]) / ms(row) for row in rows)


def _named(backend: str) -> str:
    if not backend.startswith(f"{OURS} "):
        return backend
    return OURS + operators.LAST if backend.endswith(operators.LAST) else OURS


def ms(row: Row) -> float:
    """The median time of a row."""
    return float(row["median"])


def peak(row: Row) -> float:
    """The peak of memory of a row, in bytes."""
    return float(row["peak_bytes"])


def faster_own(rows: dict[str, Row]) -> Row:
    """Our row in its better layout."""
    return min((rows[name] for name in (OURS, OURS + operators.LAST) if name in rows), key=ms)


def faster_conv(rows: dict[str, Row]) -> Row:
    """The row of the convolution in its better layout."""
    return min((rows[name] for name in operators.CONVS if name in rows), key=ms)


def with_table(page: str, name: str, table: str) -> str:
    """A page with a table in the place that is marked for it."""
    before, start, rest = page.partition(f"<!-- table: {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not (start and end):
        raise click.ClickException(f"{PAGE.name} has no place for the table {name!r}")
    return before + start + table + "\n" + end + after
