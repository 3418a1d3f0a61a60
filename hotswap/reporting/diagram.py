"""Layout of a drawing: the rows of a network, and the lines from guides to targets."""

from collections.abc import Sequence
from dataclasses import dataclass

from hotswap.reporting.outline import FOLDED, GUIDE, TARGET, Row

WIDTH = 330  # of the drawing, in units that are a pixel on a phone
_TALL, _LOW, _GAP = 36, 22, 4  # heights of rows, and between them
_INDENT, _DEEPEST = 10, 6
_LANE, _COLOURS = 12, 4
_LETTER, _SMALL = 8.0, 6.0  # approximate widths of letters of labels and of notes, in broad fonts
_LONG = 1400  # a drawing that is higher scrolls by itself


@dataclass(frozen=True)
class Box:
    """A row and its place."""

    row: Row
    x: float
    y: float
    width: float
    height: float
    label: str  # cut to what fits; the drawing's titles have all of it
    note: str

    @property
    def middle(self) -> float:
        """The height at which lines meet the box."""
        return self.y + self.height / 2

    @property
    def right(self) -> float:
        """The right edge, where lines start."""
        return self.x + self.width


@dataclass(frozen=True)
class Lane:
    """The line from one guide to its targets, beside the rows."""

    colour: int
    x: float
    source: Box
    targets: tuple[Box, ...]

    @property
    def ends(self) -> tuple[float, float]:
        """The highest and the lowest point."""
        middles = [box.middle for box in (self.source, *self.targets)]
        return min(middles), max(middles)


@dataclass(frozen=True)
class Drawing:
    """The whole drawing."""

    height: float
    boxes: tuple[Box, ...]
    lanes: tuple[Lane, ...]
    width: float = WIDTH

    @property
    def is_long(self) -> bool:
        """Whether the drawing should scroll in a frame of its own."""
        return self.height > _LONG


def draw(rows: Sequence[Row]) -> Drawing:
    """Lay out rows from top to bottom, and lines to their right."""
    index = {row.key: place for place, row in reversed(list(enumerate(rows))) if row.kind != FOLDED}
    sources = {source: None for row in rows for source in row.guides}  # an ordered set
    spans = []
    for source in sources:
        reading = [index[row.key] for row in rows if source in row.guides]
        spans.append((source, index[source], reading))
    columns = _columns([(min(at, *reading), max(at, *reading)) for _, at, reading in spans])
    gutter = _LANE * (max(columns, default=-1) + 1) + (_LANE if columns else 0)
    boxes: list[Box] = []
    y = 1.0
    for row in rows:
        height = _TALL if row.kind in (GUIDE, TARGET) else _LOW
        x = 1.0 + _INDENT * min(row.depth, _DEEPEST)
        width = WIDTH - gutter - x - 1
        boxes.append(Box(row, x, y, width, height, *_fitted(row, width - 14)))
        y += height + _GAP
    lanes = tuple(
        Lane(place % _COLOURS, WIDTH - gutter + _LANE * (column + 1) - 2, boxes[at], tuple(boxes[i] for i in reading))
        for place, ((_, at, reading), column) in enumerate(zip(spans, columns, strict=True))
    )
    return Drawing(y, tuple(boxes), lanes)


def _columns(spans: Sequence[tuple[int, int]]) -> list[int]:
    """For each span the first column in which no other overlaps it."""
    taken: list[list[tuple[int, int]]] = []
    chosen = []
    for low, high in spans:
        free = (i for i, column in enumerate(taken) if all(high < a or b < low for a, b in column))
        column = next(free, len(taken))
        if column == len(taken):
            taken.append([])
        taken[column].append((low, high))
        chosen.append(column)
    return chosen


def _fitted(row: Row, width: float) -> tuple[str, str]:
    size = len(row.size) * _SMALL
    if row.kind not in (GUIDE, TARGET):  # on one line
        letter = _SMALL if row.kind == FOLDED else _LETTER
        label = _cut(row.label, (width - size) / letter)
        return label, _cut(row.note, (width - size - len(label) * letter) / _SMALL - 2)
    return _cut(row.label, (width - size) / _LETTER), _cut(row.note, width / _SMALL)


def _cut(text: str, letters: float) -> str:
    return text if len(text) <= letters else f"{text[: int(letters) - 1]}…" if letters >= 3 else ""
