"""What the kernels of guided enlargement share: pixels, tables of neighbours, plans."""

# Triton is untyped, and its constants are written in capitals.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pac_ops.backends.triton import tiles
from pac_ops.backends.triton.arguments import cdiv, index_type, strides
from pac_ops.backends.triton.launch import Launch
from pac_ops.backends.triton.layout import Layout
from pac_ops.enlargement import Enlargement
from pac_ops.geometry import Pair


@triton.jit
def pixels_of_tile(tile, batch, height, width, BLOCK: tl.constexpr, INDEX):
    """Image, row and column of each pixel of a tile, and whether it exists."""
    pixel = tl.full((BLOCK,), BLOCK, INDEX) * tile + tl.arange(0, BLOCK)
    image = pixel // (height * width)
    return image, pixel % (height * width) // width, pixel % width, image < batch


class Planned(NamedTuple):
    """All of a call that follows from its shapes."""

    launch: Launch
    out: Layout


def tables_of(rows_and_columns: Sequence[Tensor]) -> dict[str, Tensor]:
    """The arguments of kernels for neighbours along either axis."""
    return dict(zip(("rows", "columns"), rows_and_columns, strict=True))


def launch_over(
    kernel: Any,
    coarse: Layout,
    fine: Pair,
    over: Pair,
    where: Enlargement,
    arguments: dict[str, Any],
    like: Layout,
    indexed: Sequence[Layout],
    device: torch.device,
    programs: int | None = None,
) -> Launch:
    """A kernel over the pixels of a size.

    Args:
        kernel: what to launch.
        coarse: the coarse map.
        fine: the size of the fine one.
        over: the size of the one whose pixels have programs.
        where: the enlargement.
        arguments: those of this kernel alone.
        like: the map that gives the channels and their tiles.
        indexed: all tensors that offsets reach into.
        device: to run on.
        programs: of each tile of pixels; by default one for each block of channels.
    """
    (batch, _, height, width), channels = coarse.shape, like.shape[1]
    meta = tiles.elementwise(like.strides, channels)
    arguments |= {
        **strides("coarse", coarse),
        "batch": batch,
        "channels": channels,
        "height": height,
        "width": width,
        "fine_height": fine[0],
        "fine_width": fine[1],
        "TAPS": where.footprint,
        "INDEX": index_type(*indexed),
    }
    parts = cdiv(channels, meta["BLOCK_O"]) if programs is None else programs
    grid = (cdiv(batch * over[0] * over[1], meta["BLOCK_P"]) * parts,)
    return Launch(kernel, grid, arguments | meta, device)


def size_of(x: Layout) -> Pair:
    """Height and width."""
    return x.shape[2], x.shape[3]
