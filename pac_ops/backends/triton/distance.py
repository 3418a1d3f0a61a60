"""Squared distances between guide features, and their gradients; neither taps nor differences are stored."""

# Triton is untyped, and its constants are written in capitals.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pac_ops.backends.triton.indexing import (
    count_taps,
    first_tap,
    is_in,
    load_channels,
    read_at,
    store_channels,
    tile_of_pixels,
)
from pac_ops.backends.triton.launch import (
    INTERPRETED,
    Meta,
    cdiv,
    elementwise_tiles,
    index_type,
    launch,
    tensor,
    walked,
)
from pac_ops.backends.triton.walk import Walk, sliding
from pac_ops.geometry import Window


@triton.jit
def _distance_kernel(
    centre,  # [B, C, H, W], or the image itself where CENTRED
    x,  # [B, C, XH, XW], read under the taps
    out,  # [B, 1, kh, kw, H, W]
    centre_stride_b, centre_stride_c, centre_stride_y, centre_stride_x,
    x_stride_b, x_stride_c, x_stride_y, x_stride_x,
    out_stride_b, out_stride_c, out_stride_i, out_stride_j, out_stride_y, out_stride_x,
    batch, channels, height, width, x_height, x_width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CENTRED: tl.constexpr,  # distances from what the tap in the centre reads, which itself is at 0
    CLIP: tl.constexpr,
    GAUSSIAN: tl.constexpr,  # exp(-d / 2) of the distance d
    INDEX: tl.constexpr,
    PARTS: tl.constexpr,  # blocks of taps
    BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_O: tl.constexpr,  # channels
):  # fmt: skip
    part = tl.program_id(0) % PARTS
    tile = tl.program_id(0) // PARTS
    image, y, x_, exists = tile_of_pixels(tile, 0, batch, height, width, ROWS, COLUMNS, BLOCK_P, INDEX)
    tap = part * BLOCK_T + tl.arange(0, BLOCK_T)
    centre_i: tl.constexpr = ROWS.taps // 2
    centre_j: tl.constexpr = COLUMNS.taps // 2
    if CENTRED:
        tap += (tap >= centre_i * COLUMNS.taps + centre_j).to(tl.int32)
        centre_y = read_at(y, centre_i, ROWS)
        centre_x = read_at(x_, centre_j, COLUMNS)
        has_centre = exists & is_in(centre_y, centre_x, x_height, x_width)
    else:
        centre_y = y
        centre_x = x_
        has_centre = exists
    i = (tap // COLUMNS.taps)[:, None]
    j = (tap % COLUMNS.taps)[:, None]
    writes = exists[None, :] & (tap < ROWS.taps * COLUMNS.taps)[:, None]
    read_y = read_at(y[None, :], i, ROWS)
    read_x = read_at(x_[None, :], j, COLUMNS)
    reads = writes & is_in(read_y, read_x, x_height, x_width)
    at_f_i = image * centre_stride_b + centre_y * centre_stride_y + centre_x * centre_stride_x
    at_x = image[None, :] * x_stride_b + read_y * x_stride_y + read_x * x_stride_x

    total = tl.zeros((BLOCK_T, BLOCK_O, BLOCK_P), tl.float32)
    for first in range(0, channels, BLOCK_O):
        c = first + tl.arange(0, BLOCK_O)
        f_i = load_channels(centre, at_f_i, c.to(INDEX) * centre_stride_c, has_centre, c < channels).to(tl.float32)
        at = at_x[:, None, :] + (c.to(INDEX) * x_stride_c)[None, :, None]
        f_j = tl.load(x + at, mask=reads[:, None, :] & (c < channels)[None, :, None], other=0.0).to(tl.float32)
        away = f_j - f_i[None, :, :]
        if CLIP:
            away = tl.where(away < 0, 0.0, away)  # a NaN stays, as with torch.clamp
        total += away * away
    at = image[None, :] * out_stride_b + y[None, :] * out_stride_y + x_[None, :] * out_stride_x
    distance = tl.sum(total, axis=1)
    result = tl.exp(-0.5 * distance) if GAUSSIAN else distance
    tl.store(out + at + i * out_stride_i + j * out_stride_j, result, mask=writes)
    if CENTRED and part == 0:
        at_centre = image * out_stride_b + y * out_stride_y + x_ * out_stride_x
        at_centre += centre_i * out_stride_i + centre_j * out_stride_j
        tl.store(out + at_centre, tl.full((BLOCK_P,), 1.0 if GAUSSIAN else 0.0, tl.float32), mask=exists)


@triton.jit
def _pull_kernel(
    pulled,  # [B, C, H, W]
    x,  # [B, C, XH, XW], read under the taps
    grad,  # [B, 1, kh, kw, ...]
    out,  # as pulled
    pulled_stride_b, pulled_stride_c, pulled_stride_y, pulled_stride_x,
    x_stride_b, x_stride_c, x_stride_y, x_stride_x,
    grad_stride_b, grad_stride_c, grad_stride_i, grad_stride_j, grad_stride_y, grad_stride_x,
    out_stride_b, out_stride_c, out_stride_y, out_stride_x,
    batch, channels, height, width, x_height, x_width,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    AT_SOURCE: tl.constexpr,  # grad is indexed by the pixel read
    CLIP: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """sum_taps 2 grad (pulled - read), of a clipped distance only where the clipped difference is not 0."""
    parts = tl.cdiv(channels, BLOCK_O)
    phases = ROWS.divide * COLUMNS.divide
    phase = tl.program_id(0) // parts % phases
    tile = tl.program_id(0) // parts // phases
    image, y, x_, exists = tile_of_pixels(tile, phase, batch, height, width, ROWS, COLUMNS, BLOCK_P, INDEX)
    c = tl.program_id(0) % parts * BLOCK_O + tl.arange(0, BLOCK_O)
    at = image * pulled_stride_b + y * pulled_stride_y + x_ * pulled_stride_x
    f = load_channels(pulled, at, c.to(INDEX) * pulled_stride_c, exists, c < channels).to(tl.float32)

    first_i = first_tap(phase // COLUMNS.divide, ROWS)
    first_j = first_tap(phase % COLUMNS.divide, COLUMNS)
    taps_j = count_taps(first_j, COLUMNS)
    total = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    for step in range(count_taps(first_i, ROWS) * taps_j):
        i = first_i + step // taps_j * ROWS.jump
        j = first_j + step % taps_j * COLUMNS.jump
        read_y = read_at(y, i, ROWS)
        read_x = read_at(x_, j, COLUMNS)
        reads = exists & is_in(read_y, read_x, x_height, x_width)
        at = image * x_stride_b + read_y * x_stride_y + read_x * x_stride_x
        away = f - load_channels(x, at, c.to(INDEX) * x_stride_c, reads, c < channels).to(tl.float32)
        at = image * grad_stride_b + i * grad_stride_i + j * grad_stride_j
        if AT_SOURCE:
            counts = reads
            at += read_y * grad_stride_y + read_x * grad_stride_x
            if CLIP:
                away = tl.where(away < 0, 0.0, away)
        else:  # a tap outside the image reads 0, and has a distance like any other
            counts = exists
            at += y * grad_stride_y + x_ * grad_stride_x
            if CLIP:
                away = tl.where(away > 0, 0.0, away)
        weight = tl.load(grad + at, mask=counts, other=0.0).to(tl.float32)
        total += tl.where(counts[None, :], 2 * weight[None, :] * away, 0.0)  # 0 * infinity is not 0
    at = image * out_stride_b + y * out_stride_y + x_ * out_stride_x
    store_channels(out, at, c.to(INDEX) * out_stride_c, total, exists, c < channels)


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
    size = window.output_size(guide.shape[2], guide.shape[3])
    return _distances(guide, guide, size, window, centred=True, clip=False, gaussian=False)


def gaussian_kernel2d(guide: Tensor, window: Window) -> Tensor:
    """See `reference.gaussian_kernel2d`."""
    size = window.output_size(guide.shape[2], guide.shape[3])
    return _distances(guide, guide, size, window, centred=True, clip=False, gaussian=True)


def centred_distance2d(centre: Tensor, guide: Tensor, window: Window, asymmetric: bool) -> Tensor:
    """See `reference.centred_distance2d`."""
    size = (centre.shape[2], centre.shape[3])
    return _distances(centre, guide, size, window, centred=False, clip=asymmetric, gaussian=False)


def _distances(
    centre: Tensor, x: Tensor, size: tuple[int, int], window: Window, *, centred: bool, clip: bool, gaussian: bool
) -> Tensor:
    walk, (kh, kw) = sliding(window), window.kernel_size
    batch, channels = x.shape[:2]
    out = torch.empty((batch, 1, kh, kw, *size), dtype=torch.float32, device=x.device)
    meta = _tiles(x)
    parts = max(1, cdiv(kh * kw - centred, meta["BLOCK_T"]))
    arguments: dict[str, Any] = {
        **tensor("centre", centre),
        **tensor("x", x),
        **tensor("out", out, "bcijyx"),
        **walked(walk, size, x),
        "channels": channels,
        "CENTRED": centred,
        "CLIP": clip,
        "GAUSSIAN": gaussian,
        "INDEX": index_type(centre, x, out),
        "PARTS": parts,
    }
    launch(_distance_kernel, (cdiv(batch * size[0] * size[1], meta["BLOCK_P"]) * parts,), x, arguments, meta)
    return out


def _tiles(x: Tensor) -> Meta:
    """Taps, pixels and channels of a tile. A 3x3 window has 8 taps beside its centre."""
    if INTERPRETED:
        return {"BLOCK_T": 8, "BLOCK_P": 64, "BLOCK_O": 2}
    return {"BLOCK_T": 8, "BLOCK_P": 64, "BLOCK_O": 8 if x.stride(1) == 1 else 4, "num_warps": 4}


def squared_distance2d_backward(grad: Tensor, guide: Tensor, window: Window) -> Tensor:
    """See `reference.squared_distance2d_backward`."""
    back = sliding(window).back
    batch, channels, height, width = guide.shape
    out = guide.new_empty(guide.shape)
    arguments: dict[str, Any] = {
        **tensor("guide", guide),
        **tensor("grad", grad, "bcijyx"),
        **tensor("out", out),
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
    meta = elementwise_tiles(guide, channels)
    programs = cdiv(batch * height * width, meta["BLOCK_P"]) * cdiv(channels, meta["BLOCK_O"])
    launch(_mutual_pull_kernel, (programs,), guide, arguments, meta)
    return out


def centred_distance2d_backward(
    grad: Tensor, centre: Tensor, guide: Tensor, window: Window, asymmetric: bool
) -> tuple[Tensor, Tensor]:
    """See `reference.centred_distance2d_backward`."""
    walk = sliding(window)
    return (
        _pulled(centre, guide, grad, walk, at_source=False, clip=asymmetric),
        _pulled(guide, centre, grad, walk.back, at_source=True, clip=asymmetric),
    )


def _pulled(pulled: Tensor, x: Tensor, grad: Tensor, walk: Walk, *, at_source: bool, clip: bool) -> Tensor:
    batch, channels, height, width = pulled.shape
    out = pulled.new_empty(pulled.shape)
    arguments: dict[str, Any] = {
        **tensor("pulled", pulled),
        **tensor("x", x),
        **tensor("grad", grad, "bcijyx"),
        **tensor("out", out),
        **walked(walk, (height, width), x),
        "channels": channels,
        "AT_SOURCE": at_source,
        "CLIP": clip,
        "INDEX": index_type(pulled, x, grad, out),
    }
    meta = elementwise_tiles(pulled, channels)
    pixels = batch * cdiv(height, walk.rows.divide) * cdiv(width, walk.columns.divide)
    programs = cdiv(pixels, meta["BLOCK_P"]) * walk.phases * cdiv(channels, meta["BLOCK_O"])
    launch(_pull_kernel, (programs,), pulled, arguments, meta)
    return out
