"""The arguments of kernels: strides, sizes, the index type, the precision of products."""

# Triton is untyped.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator"

from collections.abc import Sequence
from typing import Any

import torch
import triton.language as tl

from pac_ops.backends.triton.launch import INTERPRETED
from pac_ops.backends.triton.layout import Layout
from pac_ops.backends.triton.walk import Walk

INT32_OFFSETS = 2**31 - 2**20  # offsets beyond this are computed in 64 bits; the margin is for a last, partial tile
_OPERANDS = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def strides(name: str, x: Layout | None, axes: str = "bcyx") -> dict[str, Any]:
    """The strides of a tensor, each by itself, as Inductor passes no tuples; those of an absent one are 0."""
    steps = (0,) * len(axes) if x is None else x.strides
    return {f"{name}_stride_{axis}": step for axis, step in zip(axes, steps, strict=True)}


def walked(walk: Walk, size: Sequence[int], x: Layout) -> dict[str, Any]:
    """The arguments of a kernel that walks from an image of a size, (height, width), to the pixels of `x`."""
    return {
        "batch": x.shape[0],
        "height": size[0],
        "width": size[1],
        "x_height": x.shape[2],
        "x_width": x.shape[3],
        "ROWS": walk.rows,
        "COLUMNS": walk.columns,
    }


def index_type(*tensors: Layout | None) -> Any:
    """32-bit offsets where they reach every element of every tensor, else 64-bit ones."""
    furthest = max(
        sum((n - 1) * s for n, s in zip(x.shape, x.strides, strict=True)) for x in tensors if x is not None
    )
    return tl.int64 if furthest > INT32_OFFSETS else tl.int32


def products(precision: str, *tensors: Layout) -> dict[str, Any]:
    """The arguments of a kernel of matrix products: what factors are converted to, and how float32 is multiplied."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    if INTERPRETED and dtype == torch.bfloat16:
        # The interpreter's dot takes bfloat16's bits for integers; in float32 such products are exact.
        dtype = torch.float32
    return {"OPERAND": _OPERANDS.get(dtype, tl.float32), "PRECISION": precision}


def cdiv(a: int, b: int) -> int:
    """How many parts of size b cover a."""
    return -(-a // b)
