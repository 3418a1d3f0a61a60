"""Guided enlargement by the compiled kernels, float32: see `csrc/enlargement.c`."""

import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from pac_ops.backends.native.compiled import run
from pac_ops.enlargement import Enlargement
from pac_ops.formats import contiguous
from pac_ops.geometry import Pair, size_of

_CPU = torch.device("cpu")
_LANES = 8  # floats in a vector of enlargement.c
_REMEMBERED = 128  # tables, of some KiB each


class _Enlargement(ctypes.Structure):
    """`Enlargement` of enlargement.c: the shapes of one call."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("batch", "channels", "height", "width", "out_height", "out_width", "taps")
    ]


def resize_distance2d(guide: Tensor, coarse: Tensor, where: Enlargement) -> Tensor:
    """See `reference.resize_distance2d`."""
    n = where.footprint
    out = guide.new_empty(guide.shape[0], 1, n, n, *guide.shape[2:])
    if not guide.shape[1]:
        return out.zero_()
    _run("pac_enlarge_distance", where, guide, coarse, contiguous(guide), contiguous(coarse), out)
    return out


def guided_resize2d(
    input: Tensor, guide: Tensor, coarse: Tensor, where: Enlargement, scale: float | Tensor, residual: bool
) -> Tensor:
    """Distances, weights (see `functional.weights`) and the sums that they weigh, some rows at a time.

    Args:
        input: any dtype; weighed in float32.
        guide: as of `resize_distance2d`, as are `coarse` and `where`.
        coarse: see there.
        where: see there.
        scale: of the guide.
        residual: whether plain weights are added, and smooth ones taken off.
    """
    out = guide.new_empty(*input.shape[:2], *guide.shape[2:])
    tables = _tables(where.hashable, size_of(coarse), size_of(guide), residual)
    tensors = (contiguous(guide), contiguous(coarse), *tables, tables[1].shape[2])
    more = (0.5 * float(scale) ** 2, int(residual), contiguous(input).float(), input.shape[1])
    _run("pac_enlarge_guided", where, guide, coarse, *tensors, *more, out)
    return out.to(input.dtype)


def resize_distance2d_backward(
    grad: Tensor, guide: Tensor, coarse: Tensor, where: Enlargement
) -> tuple[Tensor, Tensor]:
    """See `reference.resize_distance2d_backward`."""
    to_guide, to_coarse = guide.new_empty(guide.shape), coarse.new_zeros(coarse.shape)
    inputs = (contiguous(grad), contiguous(guide), contiguous(coarse))
    _run("pac_enlarge_distance_gradients", where, guide, coarse, *inputs, to_guide, to_coarse)
    return to_guide, to_coarse


def pacresize2d(input: Tensor, kernel: Tensor, where: Enlargement) -> Tensor:
    """See `reference.pacresize2d`."""
    out = input.new_empty(*input.shape[:2], *kernel.shape[4:])
    _run("pac_enlarge", where, out, input, contiguous(input), kernel.float().contiguous(), out)
    return out


def pacresize2d_backward(
    grad: Tensor, input: Tensor, kernel: Tensor, where: Enlargement, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """See `reference.pacresize2d_backward`."""
    grad_input = grad_kernel = None
    grad = contiguous(grad)
    if needs[0]:
        grad_input = input.new_zeros(input.shape)
        _run("pac_enlarge_input_gradient", where, grad, input, grad, kernel.float().contiguous(), grad_input)
    if needs[1]:
        grad_kernel = input.new_zeros(kernel.shape)
        _run("pac_enlarge_kernel_gradient", where, grad, input, grad, contiguous(input), grad_kernel)
        grad_kernel = grad_kernel.to(kernel.dtype)
    return grad_input, grad_kernel


def _run(function: str, where: Enlargement, fine: Tensor, coarse: Tensor, *tensors: Tensor | float) -> None:
    """Call a kernel with its inputs, the neighbours, and what comes after the inputs, its outputs last."""
    neighbours = _neighbours(where.hashable, size_of(coarse), size_of(fine))
    shapes = _Enlargement(*coarse.shape, fine.shape[2], fine.shape[3], where.footprint)
    inputs = 3 if function == "pac_enlarge_distance_gradients" else 2
    run(function, shapes, *tensors[:inputs], *neighbours, *tensors[inputs:])


# What follows from sizes alone takes as long as the enlargement of a small map; networks repeat their sizes.


@functools.lru_cache(_REMEMBERED)
def _neighbours(where: Enlargement, coarse: Pair, fine: Pair) -> tuple[Tensor, Tensor]:
    """The neighbours of fine rows, [Ho, n], and columns, [Wo, n]."""
    rows, columns = where.neighbours(coarse, fine, _CPU)
    return rows.contiguous(), columns.contiguous()


@functools.lru_cache(_REMEMBERED)
def _tables(where: Enlargement, coarse: Pair, fine: Pair, residual: bool) -> tuple[Tensor, Tensor]:
    """See `Enlargement.tables`; those of columns are [k, n, Wo in whole vectors] here."""
    down, across = where.tables(coarse, fine, _CPU, residual=residual)
    return down.contiguous(), F.pad(across.mT, (0, -fine[1] % _LANES)).contiguous()
