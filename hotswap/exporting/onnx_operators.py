"""What the operators of `pac_ops.whole` compute, in ONNX of open sizes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import onnx_ir as ir
import torch

from hotswap.exporting.onnx_places import (
    Where,
    aligned_weights,
    average_weights,
    cast,
    constant,
    four,
    gathered,
    neighbours,
    op,
    size_of,
)


def translations() -> dict[Any, Callable[..., Any]]:
    """By operator, the function that writes it, as `torch.onnx.export` takes them."""
    operators = torch.ops.pac_ops_whole
    return {
        operators.enlarged.default: _enlarged,
        operators.averaged.default: _averaged,
        operators.averaged_like.default: _averaged_like,
    }


def _enlarged(
    input: Any,
    guide: Any,
    coarse_guide: Any,
    scale: Any,
    ratio: Any,
    scale_factor: Any,
    align_corners: Any,
    footprints: Any,
    residual: Any,
    halvings: Any,
    bounded: Any,
) -> Any:
    double = ir.DataType.DOUBLE in (input.dtype, guide.dtype)
    narrow, kind = input.dtype, ir.DataType.DOUBLE if double else ir.DataType.FLOAT
    channels = [guide.shape[1], input.shape[1]]
    input, guide, scale = (cast(x, kind) for x in (input, guide, scale))
    factor = op.Mul(scale, constant(0.5**0.5, kind))  # so that half of a squared distance is left
    fine = op.Mul(guide, factor)
    given = None if coarse_guide is None else op.Mul(cast(coarse_guide, kind), factor)
    maps = [input]
    for _ in range(halvings):
        maps.insert(0, _halved(maps[0]))
    where = Where(2, False, align_corners, scale_factor)
    guides = _Guides(fine, given, input, ratio, kind)
    out = maps[0]
    for number, (step, image, coarse) in enumerate(guides.steps(where, footprints, halvings)):
        out = _step(out, image, coarse, step, kind, channels, residual=residual)
        if number < halvings:
            out = _with_detail(out, maps[number + 1], maps[number])
    if bounded:
        (among,) = gathered([input], channels[1:], four(fine, input, where))
        axes = constant([2])
        lowest, highest = op.ReduceMin(among, axes, keepdims=0), op.ReduceMax(among, axes, keepdims=0)
        out = op.Min(op.Max(out, lowest), highest)
    return out if narrow == kind else op.Cast(out, to=narrow)


def _averaged(image: Any, height: Any, width: Any, fit: Any) -> Any:
    sides = [constant([x]) if isinstance(x, int) else op.Reshape(x, constant([1])) for x in (height, width)]
    return _fitted(image, op.Concat(*sides, axis=0), fit=fit)


def _averaged_like(image: Any, like: Any, ratio: Any, fit: Any) -> Any:
    return _fitted(image, op.Mul(size_of(like), constant(ratio)), fit=fit)


def _fitted(image: Any, size: Any, *, fit: bool) -> Any:
    kind = ir.DataType.DOUBLE if image.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT
    image = cast(image, kind)
    average = _by_matrices(image, average_weights(image, size, kind))
    if not fit:
        return average
    resized = op.Resize(image, None, None, size, axes=[2, 3], mode="linear")
    larger = op.ReduceMax(op.Sub(size, size_of(image)), keepdims=0)  # 1 where an axis is to be longer, else 0
    larger = op.Cast(op.Clip(larger, constant(0), constant(1)), to=kind)
    return op.Add(average, op.Mul(op.Sub(resized, average), larger))


class _Guides(NamedTuple):
    """A guide at the sizes of all steps; see `pac_ops.functional.steps.guided_steps`."""

    fine: Any
    coarse: Any  # None where it is to be made
    input: Any
    ratio: Sequence[int]  # of the sizes of `fine` and `input`; empty where they are open
    kind: ir.DataType

    def steps(self, where: Where, footprints: Sequence[int], halvings: int) -> list[tuple[Where, Any, Any]]:
        """Each step and the guide at its two sizes, the coarsest first."""
        back, forward = footprints[:halvings], footprints[halvings:]
        count = len(forward) - 1
        guides = [*(self._between(count, align_corners=where.align_corners) if count else []), self.fine]
        coarse = self.coarse
        if coarse is None:
            coarse = _halved(guides[0]) if count else self._average(1)
        if self.ratio and where.scale_factor is None:
            where = where._replace(scale_factor=[float(n) for n in self.ratio])
        steps = [
            *(Where(footprint, doubling=True) for footprint in forward[:-1]),
            where._replace(footprint=forward[-1], refined=count),
        ]
        planned = list(zip(steps, guides, [coarse, *guides], strict=False))
        if back and list(forward) == [2] and list(self.ratio) == [1, 1]:
            planned = []  # each pixel has one neighbour, its own
        for footprint in reversed(back):
            fine, coarse = coarse, _halved(coarse)
            planned.insert(0, (Where(footprint, doubling=True), _odd(fine), coarse))
        return planned

    def _between(self, count: int, *, align_corners: bool) -> list[Any]:
        """Those of the steps but the last, as `pac_ops.functional.steps.guides_between` makes them."""
        finer = 2 ** (count + 1)
        if align_corners:
            size = op.Add(op.Mul(op.Sub(size_of(self.input), constant(1)), constant(finer)), constant(1))
            guides = [_halved(_by_matrices(self.fine, aligned_weights(self.fine, size, self.kind)))]
        else:
            edge = 2**count - 1
            cells = self._average(finer)
            inside = op.Slice(cells, constant([edge] * 2), constant([-edge] * 2), constant([2, 3]))
            guides = [op.AveragePool(inside, kernel_shape=[2, 2], strides=[2, 2])]
        for _ in range(count - 1):
            guides.insert(0, _halved(guides[0]))
        return guides

    def _average(self, times: int) -> Any:
        """The finest at so many times the size of the input."""
        if self.ratio and not any(n % times for n in self.ratio):
            window = [n // times for n in self.ratio]
            return op.AveragePool(self.fine, kernel_shape=window, strides=window) if max(window) > 1 else self.fine
        size = size_of(self.input) if times == 1 else op.Mul(size_of(self.input), constant(times))
        weights = average_weights(self.fine, size, self.kind, small=times == 1)
        return _by_matrices(self.fine, weights, for_a_gather=times == 1)


def _step(
    input: Any,
    guide: Any,
    coarse_guide: Any,
    where: Where,
    kind: ir.DataType,
    channels: Sequence[int],
    *,
    residual: bool,
) -> Any:
    """With weights w K over their sum, K divided by that of the nearest guide, so that something is left."""
    near = neighbours(guide, input, where, kind, residual=residual)
    of_guide, of_map = gathered([coarse_guide, input], channels, near)
    apart = op.Sub(op.Unsqueeze(guide, constant([2])), of_guide)
    distances = op.ReduceSumSquare(apart, constant([1]))  # [B, 1, n n, H, W]
    kernel = op.Exp(op.Sub(op.ReduceMin(distances, constant([2])), distances))
    weights = op.LpNormalization(op.Mul(kernel, near.weights), axis=2, p=1)
    if near.residual is not None:
        weights = op.Add(weights, near.residual)
    return op.ReduceSum(op.Mul(of_map, weights), constant([2]), keepdims=0)


def _by_matrices(image: Any, weights: tuple[Any, Any], *, for_a_gather: bool = False) -> Any:
    """The product with both; where it is gathered from, which turns it, written so that two transposes cancel."""
    down, across = weights
    turn = partial(op.Transpose, perm=[0, 1, 3, 2])
    if for_a_gather:
        return turn(op.MatMul(across, turn(op.MatMul(down, image))))
    made = op.MatMul(down, op.MatMul(image, turn(across)))
    return made if len(image.shape or ()) != 3 else op.Squeeze(made, constant([0]))


# --- halves, see `pac_ops.functional.pyramid` ---------------------------------------------------------------


def _halved(image: Any) -> Any:
    padded = op.Pad(image, constant([0, 0, 1, 1, 0, 0, 2, 2]), mode="edge")
    return op.AveragePool(op.AveragePool(padded, kernel_shape=[2, 2]), kernel_shape=[2, 2], strides=[2, 2])


def _odd(image: Any) -> Any:
    size = op.Add(op.Mul(op.Div(size_of(image), constant(2)), constant(2)), constant(1))
    return _first(op.Pad(image, constant([0, 0, 0, 0, 0, 0, 1, 1]), mode="edge"), size)


def _with_detail(enlarged: Any, map: Any, half: Any) -> Any:
    size, places = size_of(enlarged), "align_corners"
    plain = op.Resize(half, None, None, size, axes=[2, 3], mode="linear", coordinate_transformation_mode=places)
    gained = op.Sub(enlarged, plain)
    return op.Add(map, _first(gained, size_of(map)))


def _first(image: Any, size: Any) -> Any:
    return op.Slice(image, constant([0, 0]), size, constant([2, 3]))
