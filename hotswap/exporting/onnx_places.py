"""Where fine pixels lie among coarse ones, in ONNX of open sizes.

It is worked out in whole numbers, and for rows and columns together: tables are [2, n n, 1, m], m the longer side of
the image, and cut to its height and width in the end. Of the n n neighbours of a pixel, side by side on the second
axis, number j is that of row j % n and column j // n. No number is divided that may be negative; the rest
of one has the divisor's sign.
"""

import itertools
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
    beyond: bool  # whether they count from a pixel outside, which the map's first one is repeated in
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


def gathered(maps: Sequence[Any], channels: Sequence[int], near: Neighbours) -> list[Any]:
    """The pixels of coarse maps near each fine one, of so many channels each: [B, C, h, w] -> [B, C, n n, H, W].

    Maps with a border go together as far as they are small, for fewer operations; of large ones the copies cost.
    """
    turned = [op.Transpose(x, perm=[0, 1, 3, 2]) for x in maps]
    if not near.beyond:
        return [op.Gather(_across(x, near), near.rows, axis=2) for x in turned]
    across = _across(op.Pad(op.Concat(*turned, axis=1), constant([0, 0, 1, 1, 0, 0, 1, 1]), mode="edge"), near)
    across.shape = ir.Shape([None, sum(channels), None, None])  # by which `onnx_lean` makes the slices one operation
    ends = list(itertools.accumulate(channels, initial=0))
    parts = [op.Slice(across, *(constant([k]) for k in (*bounds, 1, 1))) for bounds in itertools.pairwise(ends)]
    return [op.Gather(part, near.rows, axis=2) for part in parts]


def _across(turned: Any, near: Neighbours) -> Any:
    """The columns of a map, [B, C, w, h], near those of fine pixels, below each other: [B, C, h n, W].

    Not gathered along the last axis, where a runtime copies single numbers.
    """
    columns = op.Gather(turned, near.columns, axis=2)  # [B, C, n, W, h]
    return op.Reshape(op.Transpose(columns, perm=[0, 1, 4, 2, 3]), near.below)


def neighbours(fine: Any, coarse: Any, where: Where, kind: ir.DataType, *, residual: bool = False) -> Neighbours:
    """The pixels of a map that are near those of an image, and their weights."""
    n = where.footprint
    length = _both(size_of(coarse))
    last = op.Sub(length, constant(1))
    place, parts, ahead = _places(_both(size_of(fine)), length, last, where)
    if n > 2 and not (where.doubling or where.align_corners):
        first = parts if ahead == 1 else op.Mul(parts, constant(ahead))
        place = op.Min(op.Max(place, first), op.Add(first, op.Mul(last, parts)))
    beyond = n == 2 and not (where.doubling or where.refined)  # else inside, or further outside than by a pixel
    number, cut = _numbers(n), _Cut(fine, size_of(coarse) if beyond else None, n)
    outermost = np.asarray(number == n - 1, dtype=np.int64)
    offset = number + 1 - n // 2
    # On a coarse pixel the outermost neighbour has no weight, and is the same as the one before.
    before = op.Sub(place, constant(outermost))
    near = op.Div(before, parts)
    if n == 2:  # on a coarse pixel and at the edge both are one pixel, whatever their weights
        from_other = op.Add(op.Mod(op.Mul(before, constant(2 * number - 1)), parts), constant(outermost))
        weights = cut.product(op.Cast(from_other, to=kind))
        if where.refined:
            return cut.neighbours(_inside(op.Add(near, constant(offset - ahead)), last), weights)
        return cut.neighbours(near, weights, offset=offset - ahead, beyond=beyond)
    near = op.Add(near, constant(offset - ahead))
    pixels = _inside(near, last)
    outside = op.Cast(op.Abs(op.Sub(near, pixels)), to=kind)  # by a pixel or more
    part = op.Div(op.Cast(op.Mod(place, parts), to=kind), op.Cast(parts, to=kind))  # of the way to the next one
    gaps = op.Abs(op.Sub(part, constant(offset, kind)))
    one = constant(1, kind)
    tent = op.Relu(op.Sub(op.Sub(one, op.Mul(gaps, constant(2 / n, kind))), outside))
    found = cut.neighbours(pixels, cut.product(tent))
    if not residual:
        return found
    plain = op.Relu(op.Sub(op.Sub(one, gaps), outside))
    smooth = op.Mul(op.LpNormalization(tent, axis=1, p=1), constant(n, kind))  # each is there n times
    return found._replace(residual=op.Sub(cut.product(plain), cut.product(smooth)))


def four(fine: Any, coarse: Any, where: Where) -> Neighbours:
    """The 2 x 2 neighbours of mode="bilinear", those without weight too; no weights."""
    length = _both(size_of(coarse))
    last = op.Sub(length, constant(1))
    place, parts, ahead = _places(_both(size_of(fine)), length, last, where)
    near = op.Add(op.Div(place, parts), constant(_numbers(2) - ahead))
    return _Cut(fine).neighbours(_inside(near, last), None)


def average_weights(image: Any, size: Any, kind: ir.DataType, *, small: bool = False) -> tuple[Any, Any]:
    """The matrices of `pac_ops.area.area_average2d`, [1, 1, h, H] and [1, 1, w, W].

    To a `small` size, bins are as many as both sides have together, which takes an operation less.

    Pixel p is in bin i, counted from 1, where |(2p + 1) w + n - 2 i n| < n + w.
    """
    given, wanted = _both(size_of(image)), _both(size)
    twice = op.Add(given, given)
    place = op.Add(op.Mul(_odd_numbers(twice), wanted), given)
    after = op.ReduceSum(size, keepdims=0) if small else op.ReduceMax(op.Add(size, constant(1)), keepdims=0)
    bins = op.Range(constant(1), after, constant(1))
    apart = op.Abs(op.Sub(place, op.Mul(op.Unsqueeze(bins, constant([1])), twice)))
    inside = op.Clip(op.Sub(op.Add(given, wanted), apart), constant(0), constant(1))
    return _matrices(inside, image, size, kind)


def aligned_weights(image: Any, size: Any, kind: ir.DataType) -> tuple[Any, Any]:
    """Likewise of mode="bilinear" with align_corners, whose places a Resize would round to float32.

    Pixel p of n counts for i of m by m - 1 - |p (m - 1) - i (n - 1)|.
    """
    given, wanted = (op.Sub(_both(x), constant(1)) for x in (size_of(image), size))
    wanted = op.Max(wanted, constant(1))
    pixels, bins = (_whole_numbers(op.Add(x, constant(1))) for x in (given, wanted))
    apart = op.Abs(op.Sub(op.Mul(pixels, wanted), op.Mul(op.Unsqueeze(bins, constant([1])), given)))
    return _matrices(op.Max(op.Sub(wanted, apart), constant(0)), image, size, kind)


def _matrices(weights: Any, image: Any, size: Any, kind: ir.DataType) -> tuple[Any, Any]:
    """Of weights of rows and columns, [2, 1, k, m], normalised and cut to the image and a size."""
    down, across = _Cut(image, size).parts(op.LpNormalization(op.Cast(weights, to=kind), axis=3, p=1))
    return down, across


class _Cut:
    """Tables of rows and columns, cut to the sides of an image, and those of pairs with a map to both's.

    Where there are no pairs, the map's size may be given to share the operations that cut the pairs of an average.
    """

    def __init__(self, fine: Any, coarse: Any = None, footprint: int = 2) -> None:
        self._footprint = footprint
        sides = op.Split(size_of(fine), axis=0, num_outputs=2)
        others = [constant([1])] * 2 if coarse is None else op.Split(coarse, axis=0, num_outputs=2)
        self._below = op.Concat(constant([0, 0, -1]), sides[1], axis=0)
        self._ends = [
            op.Concat(constant([k + 1, footprint**2]), *lengths, axis=0)
            for k, lengths in enumerate(zip(others, sides, strict=True))
        ]

    def parts(self, table: Any, step: int = 1) -> list[Any]:
        """That of rows, [1, n n, 1, H], and that of columns, of each `step`-th neighbour, [1, n n / step, 1, W].

        Of a table of pairs, the third axis is as long as the map.
        """
        axes = constant([0, 1, 2, 3])
        return [
            op.Slice(table, constant([k, 0, 0, 0]), end, axes, constant([1, step if k else 1, 1, 1]))
            for k, end in enumerate(self._ends)
        ]

    def product(self, table: Any) -> Any:
        """[1, n n, H, W]."""
        rows, columns = self.parts(table)
        return op.Mul(op.Transpose(rows, perm=[0, 1, 3, 2]), columns)

    def neighbours(self, pixels: Any, weights: Any, *, offset: Any = 0, beyond: bool = False) -> Neighbours:
        """These pixels, at an offset each, and weights; `beyond` as in `Neighbours`, and pixels count from 0."""
        n = self._footprint
        steps = np.array([n, 1]).reshape(2, 1, 1, 1)  # from row to row with n columns below each other, and to column
        of_column = np.stack([np.arange(n * n) // n, np.zeros(n * n, np.int64)])[:, :, None, None]
        table = op.Add(op.Mul(pixels, constant(steps)), constant((offset + beyond) * steps + of_column))
        rows, columns = (op.Squeeze(x, constant([0, 2])) for x in self.parts(table, n))
        return Neighbours(rows, columns, beyond, self._below, weights, None)


def _numbers(n: int) -> Any:
    """The row and the column of each neighbour: [2, n n, 1, 1]."""
    places = np.arange(n * n)
    return np.stack([places % n, places // n])[:, :, None, None]


def _both(size: Any) -> Any:
    return op.Unsqueeze(size, constant([1, 2, 3]))


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
