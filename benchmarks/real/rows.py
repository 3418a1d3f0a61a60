"""Rows of results in CSV files."""

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hotswap.files.atomic import atomic_write

Row = TypeVar("Row")


def read(kind: type[Row], path: Path) -> list[Row]:
    """The rows of a file; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        types = get_type_hints(kind)
        return [kind(**{name: types[name](text) for name, text in row.items()}) for row in csv.DictReader(file)]


def write(rows: Sequence[Any], path: Path) -> None:
    """Write rows of one dataclass, at least one, in one step."""
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0])], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
