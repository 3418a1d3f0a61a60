"""A map and its halves by the compiled kernels, float32: see `csrc/pyramid.c`."""

import ctypes

from torch import Tensor

from pac_ops.backends.native.compiled import run
from pac_ops.formats import contiguous


class _Halving(ctypes.Structure):
    """`Halving` of pyramid.c: the shapes of one call."""

    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "planes",
            "height",
            "width",
            "half_height",
            "half_width",
            "enlarged_height",
            "enlarged_width",
            "first",
        )
    ]


def halved(map: Tensor) -> Tensor:
    """See `functional.pyramid`."""
    height, width = map.shape[2:]
    out = map.new_empty(*map.shape[:2], height // 2 + 1, width // 2 + 1)
    run("pac_halve", _Halving(_planes(map), height, width, *out.shape[2:]), contiguous(map), out)
    return out


def with_detail(enlarged: Tensor, map: Tensor, half: Tensor, first: int) -> Tensor:
    """See `functional.pyramid`; `map` and `half` begin at row `first` of the map and at `first // 2` of its half."""
    out = map.new_empty(map.shape)
    shapes = _Halving(_planes(map), *map.shape[2:], *half.shape[2:], *enlarged.shape[2:], first)
    run("pac_with_detail", shapes, *(contiguous(x) for x in (enlarged, map, half)), out)
    return out


def _planes(x: Tensor) -> int:
    return x.shape[0] * x.shape[1]
