"""Where the rows and columns of a map lie among the dimensions of a tensor, however it is permuted and reshaped."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ROWS, COLUMNS, OTHER = "rows", "columns", ""


class Factor(NamedTuple):
    """A factor of the size of a dimension."""

    kind: str  # what it counts
    size: int
    first: int = 0  # the row or column of the map that it begins with, after crops and pads


Dimension = tuple[Factor, ...]  # factors of its size, from the slowest to the fastest; none where the size is 1
Layout = tuple[Dimension, ...]


def of_map(shape: Sequence[int]) -> Layout:
    """The layout of a [B, C, H, W] map."""
    kinds = (OTHER, OTHER, ROWS, COLUMNS)
    return tuple(counting(int(size), kind) for kind, size in zip(kinds, shape, strict=True))


def kinds(layout: Layout, dimensions: Iterable[int] | None = None) -> set[str]:
    """Which of rows and columns lie in some dimensions; in any, if none are given."""
    chosen = range(len(layout)) if dimensions is None else dimensions
    return {factor.kind for index in chosen for factor in layout[index] if factor.kind}


def extents(layout: Layout) -> tuple[int, int]:
    """The number of rows and of columns."""
    factors = [factor for dimension in layout for factor in dimension]
    rows, columns = (math.prod(f.size for f in factors if f.kind == wanted) for wanted in (ROWS, COLUMNS))
    return rows, columns


def is_map(layout: Layout) -> bool:
    """Whether it is that of a [B, C, H, W] map."""
    allowed: tuple[set[str], ...] = (set(), set(), {ROWS}, {COLUMNS})
    return len(layout) == 4 and all(kinds(layout, (index,)) <= only for index, only in enumerate(allowed))


def size_of(dimension: Dimension) -> int:
    """The size of a dimension."""
    return math.prod(factor.size for factor in dimension)


def regrouped(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout after a reshape, with dimensions of size 1 added or removed; None where factors are torn."""
    left = [factor for dimension in layout for factor in dimension][::-1]
    result: list[Dimension] = []
    for size in shape:
        dimension: list[Factor] = []
        needed = int(size)
        while needed > 1 and left:
            factor = left.pop()
            if needed % factor.size == 0:
                dimension.append(factor)
                needed //= factor.size
            elif factor.size % needed == 0:
                dimension.append(factor._replace(size=needed))
                left.append(factor._replace(size=factor.size // needed))
                needed = 1
            else:
                return None
        if needed != 1:
            return None
        result.append(tuple(dimension))
    return None if left else tuple(result)


def resized(dimension: Dimension, size: int, first: int = 0) -> Dimension | None:
    """A dimension cropped or padded to a size, beginning with what was at `first`; None where that tears factors."""
    if size_of(dimension) == size and first == 0:
        return dimension
    if len(dimension) > 1:
        return None
    factor = dimension[0] if dimension else Factor(OTHER, 1)
    return counting(size, factor.kind, factor.first + first)


def counting(size: int, kind: str = OTHER, first: int = 0) -> Dimension:
    """A dimension of one factor."""
    return () if size == 1 else (Factor(kind, size, first if kind else 0),)


def broadcast(layouts: Sequence[Layout], shape: Sequence[int]) -> Layout | None:
    """The layout of a result of this shape whose inputs are aligned from the right; None where theirs contradict."""
    result: list[Dimension] = []
    for place, size in enumerate(reversed([int(size) for size in shape]), start=1):
        given = [layout[-place] for layout in layouts if place <= len(layout) and size_of(layout[-place]) == size]
        positions = [dimension for dimension in given if any(factor.kind for factor in dimension)]
        if len({_order(dimension) for dimension in positions}) > 1:
            return None
        result.append(next(iter(positions or given), counting(size)))
    return tuple(reversed(result))


def _order(dimension: Dimension) -> tuple[tuple[str, int], ...]:
    """The kinds of its factors and what they begin with, those alike in a row counted once."""
    order = [(factor.kind, factor.first) for factor in dimension]
    return tuple(each for index, each in enumerate(order) if index == 0 or order[index - 1] != each)
