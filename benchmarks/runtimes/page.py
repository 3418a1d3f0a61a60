"""The table of runtimes in docs/export.md."""

import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks import markdown
from benchmarks.real.rows import read
from benchmarks.runtimes.networks import SIZE, SUBJECTS
from benchmarks.runtimes.routes import ROUTES
from benchmarks.runtimes.rows import RESULTS, Row
from hotswap.files.atomic import atomic_write

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
NAME, BY = "runtimes", "benchmarks.runtimes"


def write() -> None:
    """Write the page's table from the rows there are."""
    text = markdown.filled(PAGE.read_text(encoding="utf-8"), NAME, content(read(Row, RESULTS)), BY)
    with atomic_write(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")


def content(rows: Sequence[Row]) -> str:
    """A line a route, a column a network; and what failed, in the runtime's own words."""
    found = {(row.network, row.route): row for row in rows}
    lines = []
    for route in ROUTES:
        own = [found.get((network, route)) for network in SUBJECTS]
        versions = sorted({row.version for row in own if row})
        lines.append([route, ", ".join(versions), *(_cell(row, exact=ROUTES[route].exact) for row in own)])
    head = ["", "version", *(subject.title for subject in SUBJECTS.values())]
    failures = [f"- {row.route}, {SUBJECTS[row.network].title}: {row.why}" for row in rows if row.why]
    days = [row.date for row in rows]
    dates = sorted({min(days), max(days)})
    told = (
        f"One image of {SIZE} x {SIZE} on one thread: the swapped network's time by the plain one's in the same "
        "runtime, ms of both, and seconds from the network to the first result, plain's in brackets. With 8 bits "
        f"also the error, by root mean squares, plain's in brackets. {' to '.join(dates)}."
    )
    return "\n\n".join([told, markdown.table(head, lines), *(["\n".join(failures)] if failures else [])])


def _cell(row: Row | None, *, exact: bool) -> str:
    if row is None:
        return "not tried"
    if row.why:
        return "no, see below"
    seconds = f"{row.seconds_swapped:.0f} s ({row.seconds_plain:.0f})"
    if math.isnan(row.ms_swapped):
        return f"converts, {seconds}"
    error = "" if exact else f", error {row.gap_swapped:.1%} ({row.gap_plain:.1%})"
    return f"{row.ratio:.2f}, {row.ms_swapped:.1f} / {row.ms_plain:.1f} ms, {seconds}{error}"
