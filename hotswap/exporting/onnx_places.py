"""Where fine pixels lie among coarse ones, in ONNX of open sizes.

It is worked out in whole numbers, and for rows and columns together: tables are [2, n n, 1, m], m the longer side of
the image, and cut to its height and width in the end. Of the n n neighbours of a pixel, side by side on the second
axis, number j is that of row j % n and column j // n. No number is divided that may be negative.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnxscript import opset18

from pac_ops.enlargement import ratio_of

op: Any = opset18  # whose annotations say less than it takes


class Where(NamedTuple):
    """Which coarse pixels fine ones are next to; see `pac_ops.enlargement.Enlargement`."""

    footprint: int
    doubling: bool = False  # from n to 2n - 1 pixels, each second of which lies on a coarse one
    align_corners: bool = False
    scale_factor: Sequence[float] | None = None
    refined: int = 0


class Neighbours(NamedTuple):
    """The coarse pixels that are near each fine one, and their weights.

    One without weight is there twice, and has a weight the other time, or is there because it is the nearest inside.
    """

    rows: Any  # [n n, H], of a map with the n columns of a pixel below each other
    columns: Any  # [n, W]
    below: Any  # what such a map is reshaped to
    weights: Any  # w times some number that all those of a pixel have in common, [1, n n, H, W]
    residual: Any  # what is added to normalised weights, likewise; None where nothing is


def constant(values: Any, kind: ir.DataType = ir.DataType.INT64) -> Any:
    """A constant of the file."""
    return op.Constant(value=ir.tensor(np.asarray(values, dtype=kind.numpy())))


def cast(x: Any, kind: ir.DataType) -> Any:
    """The same as another kind of number, if it is of another."""
    return x if x.dtype == kind else op.Cast(x, to=kind)


def size_of(image: Any) -> Any:
    """Height and width, [2]."""
    return op.Shape(image, start=-2)


def gathered(x: Any, near: Neighbours) -> Any:
    """A coarse map's pixels near each fine one: [B, C, h, w] -> [B, C, n n, H, W].

    Not along the last axis, where a runtime copies single numbers.
    """
    columns = op.Gather(op.Transpose(x, perm=[0, 1, 3, 2]), near.columns, axis=2)  # [B, C, n, W, h]
    across = op.Reshape(op.Transpose(columns, perm=[0, 1, 4, 2, 3]), near.below)
    return op.Gather(across, near.rows, axis=2)


def neighbours(fine: Any, coarse: Any, where: Where, kind: ir.DataType, *, residual: bool = False) -> Neighbours:
    """The pixels of a map that are near those of an image, and their weights."""
    n = where.footprint
    length = _both(size_of(coarse))
    last = op.Sub(length, constant(1))
    place, parts, ahead = _places(_both(size_of(fine)), length, last, where)
    if n > 2 and not (where.doubling or where.align_corners):
        first = parts if ahead == 1 else op.Mul(parts, constant(ahead))
        place = op.Min(op.Max(place, first), op.Add(first, op.Mul(last, parts)))
    number, cut, rest = _numbers(n), _Cut(fine, n), op.Mod(place, parts)
    outermost = np.asarray(number == n - 1, dtype=np.int64)
    offset = number + 1 - n // 2
    # On a coarse pixel the outermost neighbour has no weight, and is the same as the one before.
    near = op.Add(op.Div(op.Sub(place, constant(outermost)), parts), constant(offset - ahead))
    if n == 2:  # at the edge both are one pixel, whatever their weights
        weights = op.Abs(op.Sub(rest, op.Mul(parts, constant(1 - number))))
        pixels = near if where.doubling else _inside(near, last)
        return Neighbours(*cut.indices(pixels), cut.below, cut.product(op.Cast(weights, to=kind)), None)
    pixels = _inside(near, last)
    outside = op.Cast(op.Abs(op.Sub(near, pixels)), to=kind)  # by a pixel or more
    part = op.Div(op.Cast(rest, to=kind), op.Cast(parts, to=kind))  # of the way to the next one
    gaps = op.Abs(op.Sub(part, constant(offset, kind)))
    one = constant(1, kind)
    tent = op.Relu(op.Sub(op.Sub(one, op.Mul(gaps, constant(2 / n, kind))), outside))
    indices, weights = cut.indices(pixels), cut.product(tent)
    if not residual:
        return Neighbours(*indices, cut.below, weights, None)
    plain = op.Relu(op.Sub(op.Sub(one, gaps), outside))
    smooth = op.Mul(op.LpNormalization(tent, axis=1, p=1), constant(n, kind))  # each is there n times
    return Neighbours(*indices, cut.below, weights, op.Sub(cut.product(plain), cut.product(smooth)))


def four(fine: Any, coarse: Any, where: Where) -> Neighbours:
    """The 2 x 2 neighbours of mode="bilinear", those without weight too; no weights."""
    length = _both(size_of(coarse))
    last = op.Sub(length, constant(1))
    place, parts, ahead = _places(_both(size_of(fine)), length, last, where)
    near = op.Add(op.Div(place, parts), constant(_numbers(2) - ahead))
    cut = _Cut(fine, 2)
    return Neighbours(*cut.indices(_inside(near, last)), cut.below, None, None)


def average_weights(image: Any, size: Any, kind: ir.DataType, *, exact: bool = True) -> tuple[Any, Any]:
    """The matrices of `pac_ops.area.area_average2d`, [1, 1, h, H] and [1, 1, W, w]; not `exact`, more rows of zeros.

    Pixel p is in bin i where |(2p + 1) w - (2i + 1) n| < n + w.
    """
    given, wanted = _both(size_of(image)), _both(size)
    pixels, bins = (_odd_numbers(op.Add(x, x)) for x in (given, wanted))
    apart = _apart(pixels, wanted, bins, given)
    inside = op.Clip(op.Sub(op.Add(given, wanted), apart), constant(0), constant(1))
    return _matrices(inside, image, size if exact else None, kind)


def aligned_weights(image: Any, size: Any, kind: ir.DataType) -> tuple[Any, Any]:
    """Likewise of mode="bilinear" with align_corners, whose places a Resize would round to float32.

    Pixel p of n counts for i of m by m - 1 - |p (m - 1) - i (n - 1)|.
    """
    given, wanted = (op.Sub(_both(x), constant(1)) for x in (size_of(image), size))
    wanted = op.Max(wanted, constant(1))
    pixels, bins = (_whole_numbers(op.Add(x, constant(1))) for x in (given, wanted))
    apart = _apart(pixels, wanted, bins, given)
    return _matrices(op.Max(op.Sub(wanted, apart), constant(0)), image, size, kind)


def _matrices(weights: Any, image: Any, size: Any, kind: ir.DataType) -> tuple[Any, Any]:
    """Of weights of rows and columns, [2, 1, k, m], normalised and cut to the image and a size; None for all k."""
    down, across = _Cut(image, 2).parts(op.LpNormalization(op.Cast(weights, to=kind), axis=3, p=1))
    if size is not None:
        sides = op.Split(size, axis=0, num_outputs=2)
        down, across = (
            op.Slice(x, constant([0]), n, constant([2])) for x, n in zip((down, across), sides, strict=True)
        )
    return down, op.Transpose(across, perm=[0, 1, 3, 2])


class _Cut:
    """Tables of rows and columns, cut to the sides of an image."""

    def __init__(self, fine: Any, footprint: int) -> None:
        self._footprint = footprint
        sides = op.Split(size_of(fine), axis=0, num_outputs=2)
        self.below = op.Concat(constant([0, 0, -1]), sides[1], axis=0)
        self._ends = [op.Concat(constant([k + 1, footprint**2]), side, axis=0) for k, side in enumerate(sides)]

    def parts(self, table: Any, step: int = 1) -> list[Any]:
        """That of rows, [1, n n, 1, H], and that of columns, of each `step`-th neighbour, [1, n n / step, 1, W]."""
        return [
            op.Slice(table, constant([k, 0, 0]), end, constant([0, 1, 3]), constant([1, step if k else 1, 1]))
            for k, end in enumerate(self._ends)
        ]

    def product(self, table: Any) -> Any:
        """[1, n n, H, W]."""
        rows, columns = self.parts(table)
        return op.Mul(op.Transpose(rows, perm=[0, 1, 3, 2]), columns)

    def indices(self, pixels: Any) -> tuple[Any, Any]:
        """Rows of a map with the columns of a pixel below each other, [n n, H]; columns, [n, W]."""
        n = self._footprint
        rows, columns = (op.Squeeze(x, constant([0, 2])) for x in self.parts(pixels, n))
        return op.Add(op.Mul(rows, constant(n)), constant(np.arange(n * n)[:, None] // n)), columns


def _numbers(n: int) -> Any:
    """The row and the column of each neighbour: [2, n n, 1, 1]."""
    places = np.arange(n * n)
    return np.stack([places % n, places // n])[:, :, None, None]


def _both(size: Any) -> Any:
    return op.Unsqueeze(size, constant([1, 2, 3]))


def _apart(pixels: Any, wanted: Any, bins: Any, given: Any) -> Any:
    """How far pixels are from bins, in parts of both: [2, 1, bins, pixels]."""
    return op.Abs(op.Sub(op.Mul(pixels, wanted), op.Mul(op.Unsqueeze(bins, constant([1])), given)))


def _whole_numbers(below: Any) -> Any:
    """0, 1, 2, ... below the largest of some numbers."""
    return op.Range(constant(0), op.ReduceMax(below, keepdims=0), constant(1))


def _odd_numbers(below: Any) -> Any:
    """1, 3, 5, ... below the largest of some numbers."""
    return op.Range(constant(1), op.ReduceMax(below, keepdims=0), constant(2))


def _inside(near: Any, last: Any) -> Any:
    return op.Min(op.Max(near, constant(0)), last)


def _places(fine: Any, length: Any, last: Any, where: Where) -> tuple[Any, Any, int]:
    """Where fine pixels lie: in parts of a coarse pixel, so many to one, and so many pixels ahead.

    Args:
        fine: the image's height and width, [2, 1, 1, 1].
        length: the map's.
        last: less 1.
        where: see `neighbours`.
    """
    if where.doubling or where.align_corners:
        parts = constant(2) if where.doubling else op.Max(op.Sub(fine, constant(1)), constant(1))
        pixel = _whole_numbers(fine)
        return op.Add(pixel if where.doubling else op.Mul(pixel, last), parts), parts, 1
    finer = 2**where.refined
    twice = op.Add(fine, fine)
    pixel = _odd_numbers(twice)
    unrefined = op.Add(op.Div(last, constant(finer)), constant(1)) if where.refined else length
    if where.scale_factor is None:
        place = op.Add(op.Mul(pixel, unrefined), fine)
        return op.Mul(place, constant(finer)) if where.refined else place, twice, finer
    ratios = [ratio_of(x) or Fraction(x).limit_denominator(2**20) for x in where.scale_factor]
    over, under = (np.array(x).reshape(2, 1, 1, 1) for x in zip(*(x.as_integer_ratio() for x in ratios), strict=True))
    place = pixel if (under == 1).all() else op.Mul(pixel, constant(under))
    place = op.Add(place, constant(over))
    if any(1 < x < 2 for x in where.scale_factor):
        place = _copied(place, fine, unrefined, over)
    return op.Mul(place, constant(finer)) if where.refined else place, constant(2 * over), finer


def _copied(place: Any, fine: Any, length: Any, over: Any) -> Any:
    """The places where an axis is as long as it was: the pixels themselves, which PyTorch copies."""
    pixel = _whole_numbers(fine)
    same = op.Add(op.Mul(pixel, constant(2 * over)), constant(2 * over))
    enlarged = op.Min(op.Sub(fine, length), constant(1))
    return op.Add(same, op.Mul(op.Sub(place, same), enlarged))
