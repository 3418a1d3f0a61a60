"""Guided enlargement in one pass, where nothing is recorded: neither distances nor weights are stored."""

# Triton is untyped, and its constants are written in capitals.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

from pac_ops.backends.triton.arguments import strides
from pac_ops.backends.triton.indexing import load_channels, store_channels
from pac_ops.backends.triton.launch import INTERPRETED, planned_with_tensors
from pac_ops.backends.triton.layout import Key, Layout, layout
from pac_ops.backends.triton.neighbours import (
    Planned,
    launch_over,
    pixels_of_tile,
    size_of,
    tables_of,
)
from pac_ops.enlargement import Enlargement


@triton.jit
def _guided_kernel(
    input,  # [B, C, h, w]
    fine,  # [B, G, H, W]: the guide
    coarse,  # [B, G, h, w]: the guide at the input's size
    scale,  # one number, or None
    out,  # [B, C, H, W]
    scale_number,  # where scale is None
    rows,  # [H, n]
    columns,  # [W, n]
    down,  # [k, H, n]: tents and, where RESIDUAL, plain weights and normalised tents
    across,  # [k, W, n], likewise
    input_stride_b, input_stride_c, input_stride_y, input_stride_x,
    coarse_stride_b, coarse_stride_c, coarse_stride_y, coarse_stride_x,
    fine_stride_b, fine_stride_c, fine_stride_y, fine_stride_x,
    out_stride_b, out_stride_c, out_stride_y, out_stride_x,
    batch, channels, guides, height, width, fine_height, fine_width,
    TAPS: tl.constexpr, RESIDUAL: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_G: tl.constexpr,
):  # fmt: skip
    """The sum under a softmax over taps of log w - scale^2 / 2 * distance, in one pass; see `functional.weights`."""
    parts = tl.cdiv(channels, BLOCK_O)
    image, y, x, exists = pixels_of_tile(tl.program_id(0) // parts, batch, fine_height, fine_width, BLOCK_P, INDEX)
    c = (tl.program_id(0) % parts * BLOCK_O + tl.arange(0, BLOCK_O)).to(INDEX)
    factor = tl.load(scale).to(tl.float32) if scale is not None else scale_number
    at_fine = image * fine_stride_b + y * fine_stride_y + x * fine_stride_x
    most = tl.full((BLOCK_P,), -3.0e38, tl.float32)  # a first neighbour may have no weight
    total = tl.zeros((BLOCK_P,), tl.float32)
    sums = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    beyond = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    for tap in range(TAPS * TAPS):
        at_row = y * TAPS + tap // TAPS
        at_column = x * TAPS + tap % TAPS
        i = tl.load(rows + at_row, mask=exists, other=0)
        j = tl.load(columns + at_column, mask=exists, other=0)
        weight = tl.load(down + at_row, mask=exists, other=1.0) * tl.load(across + at_column, mask=exists, other=1.0)
        at = image * coarse_stride_b + i * coarse_stride_y + j * coarse_stride_x
        distance = tl.zeros((BLOCK_G, BLOCK_P), tl.float32)
        for first in range(0, guides, BLOCK_G):
            g = (first + tl.arange(0, BLOCK_G)).to(INDEX)
            f_i = load_channels(fine, at_fine, g * fine_stride_c, exists, g < guides).to(tl.float32)
            away = f_i - load_channels(coarse, at, g * coarse_stride_c, exists, g < guides).to(tl.float32)
            distance += away * away
        logit = tl.log(weight) - 0.5 * factor * factor * tl.sum(distance, axis=0)
        logit = tl.where(weight > 0, logit, float("-inf"))  # however far apart
        higher = tl.maximum(most, logit)
        before = tl.exp(most - higher)
        here = tl.exp(logit - higher)
        most = higher
        at = image * input_stride_b + i * input_stride_y + j * input_stride_x
        v = load_channels(input, at, c * input_stride_c, exists, c < channels).to(tl.float32)
        total = total * before + here
        sums = sums * before[None, :] + here[None, :] * v
        if RESIDUAL:
            extra = tl.load(down + fine_height * TAPS + at_row, mask=exists, other=0.0)
            extra *= tl.load(across + fine_width * TAPS + at_column, mask=exists, other=0.0)
            smooth = tl.load(down + 2 * fine_height * TAPS + at_row, mask=exists, other=0.0)
            smooth *= tl.load(across + 2 * fine_width * TAPS + at_column, mask=exists, other=0.0)
            beyond += (extra - smooth)[None, :] * v
    at = image * out_stride_b + y * out_stride_y + x * out_stride_x
    store_channels(out, at, c * out_stride_c, sums / total[None, :] + beyond, exists, c < channels)


def guided_resize2d(
    input: Tensor, guide: Tensor, coarse: Tensor, where: Enlargement, scale: float | Tensor, residual: bool
) -> Tensor:
    """`pacresize2d` under the weights of the distances that `resize_distance2d` gives, of which none is stored.

    Args:
        input: [B, C, h, w].
        guide: as of `resize_distance2d`, as are `coarse` and `where`.
        coarse: see there.
        where: see there.
        scale: of the guide, a number or a tensor of one element, whose value is not asked for here.
        residual: see `functional.weights`.
    """
    layouts = (layout(input), layout(guide), layout(coarse))
    device = input.device
    plan = planned_with_tensors(_guided_plan, device, *layouts, where.hashable, residual)
    out = plan.out.empty(device)
    given, number = (scale, 0.0) if isinstance(scale, Tensor) else (None, float(scale))
    plan.launch(input, guide, coarse, given, out, numbers=(number,))
    return out


def _guided_plan(
    device: torch.device, of_input: Key, of_fine: Key, of_coarse: Key, where: Enlargement, residual: bool
) -> Planned:
    input, fine, coarse = Layout(*of_input), Layout(*of_fine), Layout(*of_coarse)
    sizes = (size_of(coarse), size_of(fine), device)
    out = Layout.dense((*input.shape[:2], *size_of(fine)), input.dtype, last=input.last)
    down, across = where.tables(*sizes, residual=residual)
    guides = coarse.shape[1]
    arguments = {
        **strides("input", input),
        **strides("fine", fine),
        **strides("out", out),
        "down": down.contiguous(),
        "across": across.contiguous(),
        **tables_of(where.neighbours(*sizes)),
        "guides": guides,
        "RESIDUAL": residual,
        "BLOCK_G": 1 if INTERPRETED else min(8, triton.next_power_of_2(max(1, int(guides)))),
    }
    launch = launch_over(
        _guided_kernel, coarse, sizes[1], sizes[1], where, arguments, out, (input, coarse, fine, out), device
    )
    return Planned(launch, out)
