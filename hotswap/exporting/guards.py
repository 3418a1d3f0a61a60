"""Sizes at which an assumption of torch.export does not hold.

`if image.numel() > 600` is a branch, and a program has the one that the example took. An exported program keeps the
condition, a guard, and refuses other sizes; an ONNX file runs there too, and computes something else.
"""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from hotswap.exporting import sizes
from hotswap.exporting.program import inputs

_FAR = 2**13  # a side that is larger takes too long to try
_MOST = 2**20  # pixels, likewise
_SIDES = (2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17, 24, 32, 33, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
_BATCHES = (1, 2, 3, 5)
_COMMON = 32  # what many networks want sides to be a multiple of


def sizes_outside(program: ExportedProgram) -> list[sizes.Size]:
    """For each guard one or two sizes of the first image, near the example's, at which it does not hold.

    Guards on sizes of further inputs that have nothing to do with the first's are left out. What a branch leads to is
    tried at those sizes alone: of two branches in a row, the second where both go the other way is not.
    """
    shape = next((x.shape for node in inputs(program) if sizes.is_image(x := node.meta["val"])), None)
    if shape is None:
        return []
    axes = tuple(shape[axis] for axis in (sizes.BATCH, sizes.HEIGHT, sizes.WIDTH))
    example = (_hint(axes[0]), _hint(axes[1]), _hint(axes[2]))
    chosen = list(_past_ranges(program, axes, example))
    for guard in _guards(axes):
        if any(_fails(guard, axes, size) for size in chosen):
            continue
        outside = sorted(
            (size for size in _sizes(guard, axes, example) if _fails(guard, axes, size)),
            key=lambda size: _distance(size, example),
        )
        chosen += outside[:1]
        chosen += [size for size in outside[1:] if not any(n % _COMMON for n in size[1:])][:1]
    return chosen


def _past_ranges(program: ExportedProgram, axes: tuple[Any, ...], example: sizes.Size) -> Iterator[sizes.Size]:
    """Sizes just outside the range of a side, as `if width > 3000` sets it."""
    for place in (1, 2):
        side = axes[place]
        allowed = program.range_constraints.get(side.node.expr) if isinstance(side, torch.SymInt) else None
        for outside in () if allowed is None else (allowed.lower - 1, allowed.upper + 1):
            if outside.is_finite and 1 < outside < _FAR:
                size = [1, *example[1:]]
                size[place] = int(outside)
                yield size[0], size[1], size[2]


def _guards(axes: tuple[Any, ...]) -> list[Any]:
    """The guards in the symbols of these axes alone."""
    known = {_symbol(side) for side in axes} - {None}
    environment = next((side.node.shape_env for side in axes if isinstance(side, torch.SymInt)), None)
    guards = dict.fromkeys(guard.expr for guard in ([] if environment is None else environment.guards))
    return [guard for guard in guards if guard.free_symbols and guard.free_symbols <= known]


def _sizes(guard: Any, axes: tuple[Any, ...], example: sizes.Size) -> Iterator[sizes.Size]:
    """Candidate sizes along the axes of a guard; the others are the example's."""
    all_sides = (_BATCHES, _SIDES, _SIDES)
    sides = (
        candidates if _symbol(side) in guard.free_symbols else (kept,)
        for side, candidates, kept in zip(axes, all_sides, example, strict=True)
    )
    for batch, height, width in itertools.product(*sides):
        if height * width <= _MOST:
            yield batch, height, width


def _fails(guard: Any, axes: tuple[Any, ...], size: sizes.Size) -> bool:
    values = {_symbol(side): sympy.Integer(n) for side, n in zip(axes, size, strict=True)}
    try:
        return bool(guard.xreplace(values) == sympy.false)
    except ZeroDivisionError:  # of what is only computed where another guard holds
        return False


def _symbol(side: Any) -> Any:
    return side.node.expr if isinstance(side, torch.SymInt) else None


def _distance(size: sizes.Size, example: sizes.Size) -> float:
    return sum(abs(math.log(n / side)) for n, side in zip(size, example, strict=True))


def _hint(size: int | torch.SymInt) -> int:
    known: Any = size if isinstance(size, int) else size.node.hint
    return int(known)
