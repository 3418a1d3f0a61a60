"""Colour spaces by the compiled kernels, float32: see `csrc/colour.c`."""

import ctypes
from collections.abc import Sequence

from torch import Tensor

from pac_ops.backends.native.compiled import run
from pac_ops.formats import contiguous


class _Colours(ctypes.Structure):
    """`Colours` of colour.c: the shapes of one call."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "channels", "pixels", "reversed")]


def srgb_to_lab(image: Tensor, mean: Sequence[float], std: Sequence[float], bgr: bool) -> Tensor:
    """See `functional.colour`."""
    out = image.new_empty(image.shape)
    shapes = _Colours(image.shape[0], image.shape[1], image.shape[2] * image.shape[3], int(bgr and len(mean) == 3))
    run("pac_lab", shapes, contiguous(image), image.new_tensor(mean), image.new_tensor(std), out)
    return out
