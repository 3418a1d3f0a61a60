"""Operators that stay one in a program on its way to a format whose writer knows them: hotswap's to ONNX.

Of open sizes, what `pac_ops.standard` writes is hundreds of operations on sizes, which exporters trace several times.
They have a shape and no kernel: a program with one cannot run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import Enlargement
from pac_ops.geometry import Pair, any_open

_library = torch.library.Library("pac_ops_whole", "DEF")
_kept = False


@contextmanager
def kept() -> Iterator[None]:
    """Have `torch.export` keep these operators whole, for the time being."""
    global _kept  # noqa: PLW0603 (exporters patch classes all the while, and are not for threads either)
    before, _kept = _kept, True
    try:
        yield
    finally:
        _kept = before


def is_kept(*sizes: Any) -> bool:
    """Whether what is computed of images of these sizes is one operator: where one is left open."""
    return _kept and torch.compiler.is_exporting() and any_open(*sizes)


def enlarged(
    input: Tensor,
    guide: Tensor,
    coarse_guide: Tensor | None,
    where: Enlargement,
    footprints: Sequence[int],
    scale: float | Tensor,
    residual: bool,
    halvings: int,
    bounded: bool,
) -> Tensor:
    """See `pacresize2d`; `where` is mode="bilinear"."""
    wide = accumulate_dtype(guide.dtype)
    factor = scale.to(wide).reshape(()) if isinstance(scale, Tensor) else torch.full((), scale, dtype=wide)
    ratio = _ratio((guide.shape[2], guide.shape[3]), input)
    options = (where.scale_factor, where.align_corners, footprints, residual, halvings, bounded)
    result: Tensor = torch.ops.pac_ops_whole.enlarged.default(input, guide, coarse_guide, factor, ratio, *options)
    return result


def averaged(image: Tensor, size: Pair, *, fit: bool = False, like: Tensor | None = None) -> Tensor:
    """`pac_ops.area.area_average2d`, or where `fit` `fitted2d`.

    Args:
        image: see there.
        size: see there.
        fit: which of them.
        like: an image whose size this may be a multiple of.
    """
    ratio = [] if like is None else _ratio(size, like)
    operators: Any = torch.ops.pac_ops_whole
    result: Tensor = (
        operators.averaged_like.default(image, like, ratio, fit)
        if ratio
        else operators.averaged.default(image, *size, fit)
    )
    return result


def _ratio(size: Pair, like: Tensor) -> list[int]:
    """How many times an image's height and width a size is known to be; empty where it is not."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy: not for every user

    sides = tuple(zip(size, like.shape[2:], strict=True))
    ratio = [_example(fine) // _example(coarse) for fine, coarse in sides]
    known = (statically_known_true(n == k * m) for (n, m), k in zip(sides, ratio, strict=True))
    return ratio if all(known) else []


def _example(size: Any) -> int:
    known: Any = size.node.hint if isinstance(size, torch.SymInt) else size
    return int(known)


def _enlarged(input: Tensor, guide: Tensor, *_: Any) -> Tensor:
    return input.new_empty((*input.shape[:2], *guide.shape[2:]))


def _averaged(image: Tensor, height: Any, width: Any, fit: bool) -> Tensor:
    return image.new_empty((*image.shape[:-2], height, width), dtype=accumulate_dtype(image.dtype))


def _averaged_like(image: Tensor, like: Tensor, ratio: Sequence[int], fit: bool) -> Tensor:
    return _averaged(image, like.shape[2] * ratio[0], like.shape[3] * ratio[1], fit)


_OPTIONS = "float[]? scale_factor, bool align_corners, int[] footprints, bool residual, int halvings, bool bounded"
_SCHEMAS: dict[str, Callable[..., Tensor]] = {
    f"enlarged(Tensor input, Tensor guide, Tensor? coarse_guide, Tensor scale, int[] ratio, {_OPTIONS})": _enlarged,
    "averaged(Tensor image, SymInt height, SymInt width, bool fit)": _averaged,
    "averaged_like(Tensor image, Tensor like, int[] ratio, bool fit)": _averaged_like,
}
for _schema, _empty in _SCHEMAS.items():
    _library.define(f"{_schema} -> Tensor")
    torch.library.register_fake(f"pac_ops_whole::{_schema[: _schema.index('(')]}", _empty, lib=_library)
