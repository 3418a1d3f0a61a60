"""Squared distances between guide features, and their gradients; neither taps nor differences are stored."""

# Triton is untyped, and its constants are written in capitals.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pac_ops.backends.triton import tiles
from pac_ops.backends.triton.arguments import cdiv, index_type, strides, walked
from pac_ops.backends.triton.indexing import (
    is_in,
    load_channels,
    read_at,
    store_channels,
    tile_of_pixels,
)
from pac_ops.backends.triton.launch import INTERPRETED, Launch, planned
from pac_ops.backends.triton.layout import Key, Layout, layout
from pac_ops.backends.triton.walk import sliding
from pac_ops.geometry import Window

PROGRAMS = 256  # that small maps are cut into, as far as they can be: a large GPU runs two on each of 132 units


@triton.jit
def _distance_kernel(
    x,  # [B, C, XH, XW]
    out,  # [B, 1, kh, kw, H, W]
    x_stride_b, x_stride_c, x_stride_y, x_stride_x,
    out_stride_b, out_stride_c, out_stride_i, out_stride_j, out_stride_y, out_stride_x,
    batch, channels, height, width, x_height, x_width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    GAUSSIAN: tl.constexpr,  # exp(-d / 2) of the distance d
    INDEX: tl.constexpr,
    PARTS: tl.constexpr,  # blocks of taps
    BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,  # channels
):  # fmt: skip
    """Distances from what the tap in the centre reads, which itself is at 0."""
    part = tl.program_id(0) % PARTS
    tile = tl.program_id(0) // PARTS
    image, y, x_, exists = tile_of_pixels(tile, 0, batch, height, width, ROWS, COLUMNS, BLOCK_P, INDEX)
    tap = part * BLOCK_T + tl.arange(0, BLOCK_T)
    centre_i: tl.constexpr = ROWS.taps // 2
    centre_j: tl.constexpr = COLUMNS.taps // 2
    tap += (tap >= centre_i * COLUMNS.taps + centre_j).to(tl.int32)
    centre_y = read_at(y, centre_i, ROWS)
    centre_x = read_at(x_, centre_j, COLUMNS)
    has_centre = exists & is_in(centre_y, centre_x, x_height, x_width)
    i = (tap // COLUMNS.taps)[:, None]
    j = (tap % COLUMNS.taps)[:, None]
    writes = exists[None, :] & (tap < ROWS.taps * COLUMNS.taps)[:, None]
    read_y = read_at(y[None, :], i, ROWS)
    read_x = read_at(x_[None, :], j, COLUMNS)
    reads = writes & is_in(read_y, read_x, x_height, x_width)
    at_f_i = image * x_stride_b + centre_y * x_stride_y + centre_x * x_stride_x
    at_x = image[None, :] * x_stride_b + read_y * x_stride_y + read_x * x_stride_x

    total = tl.zeros((BLOCK_T, BLOCK_O, BLOCK_P), tl.float32)
    for first in range(0, channels, BLOCK_O):
        c = first + tl.arange(0, BLOCK_O)
        f_i = load_channels(x, at_f_i, c.to(INDEX) * x_stride_c, has_centre, c < channels).to(tl.float32)
        at = at_x[:, None, :] + (c.to(INDEX) * x_stride_c)[None, :, None]
        f_j = tl.load(x + at, mask=reads[:, None, :] & (c < channels)[None, :, None], other=0.0).to(tl.float32)
        away = f_j - f_i[None, :, :]
        total += away * away
    at = image[None, :] * out_stride_b + y[None, :] * out_stride_y + x_[None, :] * out_stride_x
    distance = tl.sum(total, axis=1)
    result = tl.exp(-0.5 * distance) if GAUSSIAN else distance
    tl.store(out + at + i * out_stride_i + j * out_stride_j, result, mask=writes)
    if part == 0:
        at_centre = image * out_stride_b + y * out_stride_y + x_ * out_stride_x
        at_centre += centre_i * out_stride_i + centre_j * out_stride_j
        tl.store(out + at_centre, tl.full((BLOCK_P,), 1.0 if GAUSSIAN else 0.0, tl.float32), mask=exists)


@triton.jit
def _centre_of(pixel, AXIS: tl.constexpr):
    """The window whose centre is a pixel, and whether there is one, along one axis of the walk back."""
    at = pixel * AXIS.multiply + AXIS.offset + AXIS.taps // 2 * AXIS.step
    return at // AXIS.divide, (at >= 0) & (at % AXIS.divide == 0)


@triton.jit
def _mutual_pull_kernel(
    guide,  # [B, C, H, W]
    grad,  # [B, 1, kh, kw, GH, GW]
    out,  # as guide
    guide_stride_b, guide_stride_c, guide_stride_y, guide_stride_x,
    grad_stride_b, grad_stride_c, grad_stride_i, grad_stride_j, grad_stride_y, grad_stride_x,
    out_stride_b, out_stride_c, out_stride_y, out_stride_x,
    batch, channels, height, width, grad_height, grad_width,
    ROWS: tl.constexpr,  # of the walk back, from the guide to the windows
    COLUMNS: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """sum_taps 2 (grad of the pair seen from here + grad of the pair seen from there) (here - there).

    `there` is what a tap reads in the window centred here; the window centred there sees this pixel under the
    opposite tap.
    """
    parts = tl.cdiv(channels, BLOCK_O)
    tile = tl.program_id(0) // parts
    pixel = tl.full((BLOCK_P,), BLOCK_P, INDEX) * tile + tl.arange(0, BLOCK_P)
    image = pixel // (height * width)
    y = pixel % (height * width) // width
    x = pixel % width
    exists = image < batch
    c = tl.program_id(0) % parts * BLOCK_O + tl.arange(0, BLOCK_O)
    at_c = c.to(INDEX) * guide_stride_c
    at = image * guide_stride_b + y * guide_stride_y + x * guide_stride_x
    f = load_channels(guide, at, at_c, exists, c < channels).to(tl.float32)
    row, has_row = _centre_of(y, ROWS)
    column, has_column = _centre_of(x, COLUMNS)
    has_window = exists & has_row & has_column & is_in(row, column, grad_height, grad_width)
    at_window = image * grad_stride_b + row * grad_stride_y + column * grad_stride_x

    total = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    for tap in range(ROWS.taps * COLUMNS.taps):
        i = tap // COLUMNS.taps
        j = tap % COLUMNS.taps
        weight = tl.load(grad + at_window + i * grad_stride_i + j * grad_stride_j, mask=has_window, other=0.0).to(
            tl.float32
        )
        there_y = y - (i - ROWS.taps // 2) * ROWS.step  # the walk back steps the other way
        there_x = x - (j - COLUMNS.taps // 2) * COLUMNS.step
        row, has_row = _centre_of(there_y, ROWS)
        column, has_column = _centre_of(there_x, COLUMNS)
        at = image * grad_stride_b + row * grad_stride_y + column * grad_stride_x
        at += (ROWS.taps - 1 - i) * grad_stride_i + (COLUMNS.taps - 1 - j) * grad_stride_j
        seen_back = exists & has_row & has_column & is_in(row, column, grad_height, grad_width)
        weight += tl.load(grad + at, mask=seen_back, other=0.0).to(tl.float32)
        at = image * guide_stride_b + there_y * guide_stride_y + there_x * guide_stride_x
        reads = exists & is_in(there_y, there_x, height, width)
        away = f - load_channels(guide, at, at_c, reads, c < channels).to(tl.float32)
        counts = has_window | seen_back
        total += tl.where(counts[None, :], 2 * weight[None, :] * away, 0.0)  # 0 * infinity is not 0
    at = image * out_stride_b + y * out_stride_y + x * out_stride_x
    store_channels(out, at, c.to(INDEX) * out_stride_c, total, exists, c < channels)


def squared_distance2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d`."""
    return _distances(guide, window, gaussian=False)


def gaussian_kernel2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.gaussian_kernel2d`."""
    return _distances(guide, window, gaussian=True)


class _Plan(NamedTuple):
    """All of a call that follows from its shapes."""

    launch: Launch
    out: Layout


def _distances(x: Tensor, window: Window, *, gaussian: bool) -> Tensor:
    plan = planned(_plan, layout(x), window, gaussian, x.device)
    out = plan.out.empty(x.device)
    plan.launch(x, out)
    return out


def _plan(of_x: Key, window: Window, gaussian: bool, device: torch.device) -> _Plan:
    x = Layout(*of_x)
    walk, (kh, kw) = sliding(window), window.kernel_size
    batch, channels, height, width = x.shape
    size = window.output_size(height, width)
    out = Layout.dense((batch, 1, kh, kw, *size), torch.float32)
    # A 3x3 window has 8 taps beside its centre.
    of_channels = 2 if INTERPRETED else 8 if x.last else 4
    meta = {"BLOCK_T": 8, "BLOCK_P": 64, "BLOCK_O": of_channels, "num_warps": 4}
    parts = max(1, cdiv(kh * kw - 1, meta["BLOCK_T"]))
    pixels = batch * size[0] * size[1]
    if isinstance(pixels, int) and not INTERPRETED:  # in a trace it may be a symbol, which stays open
        while meta["BLOCK_P"] > 16 and cdiv(pixels, meta["BLOCK_P"]) * parts < PROGRAMS:
            meta["BLOCK_P"] //= 2
    arguments: dict[str, Any] = {
        **strides("x", x),
        **strides("out", out, "bcijyx"),
        **walked(walk, size, x),
        "channels": channels,
        "GAUSSIAN": gaussian,
        "INDEX": index_type(x, out),
        "PARTS": parts,
    }
    grid = (cdiv(pixels, meta["BLOCK_P"]) * parts,)
    return _Plan(Launch(_distance_kernel, grid, arguments | meta, device), out)


def squared_distance2d_backward(grad: Tensor, guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d_backward`."""
    plan = planned(_backward_plan, layout(grad), layout(guide), window, guide.device)
    out = plan.out.empty(guide.device)
    plan.launch(guide, grad, out)
    return out


def _backward_plan(of_grad: Key, of_guide: Key, window: Window, device: torch.device) -> _Plan:
    grad, guide = Layout(*of_grad), Layout(*of_guide)
    back = sliding(window).back
    batch, channels, height, width = guide.shape
    out = Layout.dense(guide.shape, guide.dtype, last=guide.last)
    arguments: dict[str, Any] = {
        **strides("guide", guide),
        **strides("grad", grad, "bcijyx"),
        **strides("out", out),
        "batch": batch,
        "channels": channels,
        "height": height,
        "width": width,
        "grad_height": grad.shape[4],
        "grad_width": grad.shape[5],
        "ROWS": back.rows,
        "COLUMNS": back.columns,
        "INDEX": index_type(guide, grad, out),
    }
    meta = tiles.elementwise(guide.strides, channels)
    grid = (cdiv(batch * height * width, meta["BLOCK_P"]) * cdiv(channels, meta["BLOCK_O"]),)
    return _Plan(Launch(_mutual_pull_kernel, grid, arguments | meta, device), out)
