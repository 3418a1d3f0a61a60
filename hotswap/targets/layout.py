"""Where the rows and columns of a map lie among the dimensions of a tensor, however it is permuted and reshaped."""

import math
from collections.abc import Iterable, Sequence

ROWS, COLUMNS, OTHER = "rows", "columns", ""
Factor = tuple[str, int]  # what it counts, and how many
Dimension = tuple[Factor, ...]  # factors of its size, from the slowest to the fastest; none where the size is 1
Layout = tuple[Dimension, ...]


def of_map(shape: Sequence[int]) -> Layout:
    """The layout of a [B, C, H, W] map."""
    kinds = (OTHER, OTHER, ROWS, COLUMNS)
    return tuple(_dimension(kind, int(size)) for kind, size in zip(kinds, shape, strict=True))


def kinds(layout: Layout, dimensions: Iterable[int] | None = None) -> set[str]:
    """Which of rows and columns lie in some dimensions; in any, if none are given."""
    chosen = range(len(layout)) if dimensions is None else dimensions
    return {kind for index in chosen for kind, _ in layout[index] if kind}


def extents(layout: Layout) -> tuple[int, int]:
    """The number of rows and of columns."""
    factors = [factor for dimension in layout for factor in dimension]
    rows, columns = (math.prod(size for kind, size in factors if kind == wanted) for wanted in (ROWS, COLUMNS))
    return rows, columns


def is_map(layout: Layout) -> bool:
    """Whether it is that of a [B, C, H, W] map."""
    allowed: tuple[set[str], ...] = (set(), set(), {ROWS}, {COLUMNS})
    return len(layout) == 4 and all(kinds(layout, (index,)) <= only for index, only in enumerate(allowed))


def size_of(dimension: Dimension) -> int:
    """The size of a dimension."""
    return math.prod(size for _, size in dimension)


def regrouped(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout after a reshape, with dimensions of size 1 added or removed; None where factors are torn."""
    left = [factor for dimension in layout for factor in dimension][::-1]
    result: list[Dimension] = []
    for size in shape:
        dimension: list[Factor] = []
        needed = int(size)
        while needed > 1 and left:
            kind, count = left.pop()
            if needed % count == 0:
                dimension.append((kind, count))
                needed //= count
            elif count % needed == 0:
                dimension.append((kind, needed))
                left.append((kind, count // needed))
                needed = 1
            else:
                return None
        if needed != 1:
            return None
        result.append(tuple(dimension))
    return None if left else tuple(result)


def resized(dimension: Dimension, size: int) -> Dimension | None:
    """A dimension cropped or padded to a size; None where it has several factors, which that would tear."""
    if size_of(dimension) == size:
        return dimension
    counted = {kind for kind, _ in dimension}
    return _dimension(next(iter(counted), OTHER), size) if len(counted) <= 1 else None


def broadcast(layouts: Sequence[Layout], shape: Sequence[int]) -> Layout | None:
    """The layout of a result of this shape whose inputs are aligned from the right; None where theirs contradict."""
    result: list[Dimension] = []
    for place, size in enumerate(reversed([int(size) for size in shape]), start=1):
        given = [layout[-place] for layout in layouts if place <= len(layout) and size_of(layout[-place]) == size]
        positions = [dimension for dimension in given if any(kind for kind, _ in dimension)]
        if len({_order(dimension) for dimension in positions}) > 1:
            return None
        result.append(next(iter(positions or given), _dimension(OTHER, size)))
    return tuple(reversed(result))


def _order(dimension: Dimension) -> tuple[str, ...]:
    """The kinds of its factors, those alike in a row counted once."""
    kinds = [kind for kind, _ in dimension]
    return tuple(kind for index, kind in enumerate(kinds) if index == 0 or kinds[index - 1] != kind)


def _dimension(kind: str, size: int) -> Dimension:
    return () if size == 1 else ((kind, size),)
