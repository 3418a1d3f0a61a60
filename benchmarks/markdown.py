"""Tables of the pages that are written from results, and their places."""

import re
from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, without a last line break."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def filled(text: str, name: str, content: str, by: str) -> str:
    """A page with something else between the marks of that name, which say what writes it.

    Raises:
        ValueError: where the page does not have them once.
    """
    begin, end = f"<!-- begin {name}: written by {by} -->", f"<!-- end {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page must have the marks {begin!r} and {end!r}, once each")
    return re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{content}\n{end}", text, flags=re.DOTALL
    )
