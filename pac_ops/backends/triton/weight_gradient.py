"""sum_pixels K * here x read: the gradient of the weight of either convolution, split over pixels."""

# Triton is untyped, and its constants are written in capitals.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pac_ops.backends.triton import tiles, winners
from pac_ops.backends.triton.arguments import cdiv, index_type, products, strides, walked
from pac_ops.backends.triton.cycles import OF_WEIGHT
from pac_ops.backends.triton.gather import is_product
from pac_ops.backends.triton.indexing import is_in, load_channels, pixels_further, read_at, tile_of_pixels
from pac_ops.backends.triton.launch import Launch, Run
from pac_ops.backends.triton.layout import Layout, Settings
from pac_ops.backends.triton.tiles import Meta
from pac_ops.backends.triton.walk import Walk


@triton.jit
def _dot_kernel(
    here,  # [B, groups * outer, H, W]
    x,  # [B, groups * inner, XH, XW], read under the taps
    kernel,
    out,  # [slabs, groups * outer, taps, inner] by its strides
    here_stride_b, here_stride_c, here_stride_y, here_stride_x,
    x_stride_b, x_stride_c, x_stride_y, x_stride_x,
    kernel_stride_b, kernel_stride_c, kernel_stride_i, kernel_stride_j, kernel_stride_y, kernel_stride_x,
    out_stride_s, out_stride_o, out_stride_t, out_stride_i,
    batch, height, width, x_height, x_width, groups, outer, inner,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    AT_SOURCE: tl.constexpr,  # K is indexed by the pixel read
    FLIPPED: tl.constexpr,  # the weight's taps come in the opposite order
    ADD: tl.constexpr,  # splits add to one result, instead of having a slab each
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    taps = ROWS.taps * COLUMNS.taps
    tiles_o = tl.cdiv(outer, BLOCK_O)
    tiles_i = tl.cdiv(inner, BLOCK_I)
    tap = tl.program_id(0) % taps  # neighbours, since they read the same pixels
    i = tap // COLUMNS.taps
    j = tap % COLUMNS.taps
    rest = tl.program_id(0) // taps
    o = rest % tiles_o * BLOCK_O + tl.arange(0, BLOCK_O)
    c = rest // tiles_o % tiles_i * BLOCK_I + tl.arange(0, BLOCK_I)
    group = rest // tiles_o // tiles_i
    at_o = (group * outer + o).to(INDEX) * here_stride_c
    at_c = (group * inner + c).to(INDEX) * x_stride_c

    total = tl.zeros((BLOCK_O, BLOCK_I), tl.float32)
    image, y, x_, exists = tile_of_pixels(tl.program_id(1), 0, batch, height, width, ROWS, COLUMNS, BLOCK_P, INDEX)
    stride = tl.num_programs(1).to(INDEX) * BLOCK_P  # from a tile to the next, in pixels
    for _ in range(tl.program_id(1), tl.cdiv(batch * height * width, BLOCK_P), tl.num_programs(1)):
        read_y = read_at(y, i, ROWS)
        read_x = read_at(x_, j, COLUMNS)
        reads = exists & is_in(read_y, read_x, x_height, x_width)
        at = image * here_stride_b + y * here_stride_y + x_ * here_stride_x
        held = load_channels(here, at, at_o, reads, o < outer)
        at = image * x_stride_b + read_y * x_stride_y + read_x * x_stride_x
        v = tl.trans(load_channels(x, at, at_c, reads, c < inner))
        k_y = read_y if AT_SOURCE else y
        k_x = read_x if AT_SOURCE else x_
        at = image * kernel_stride_b + i * kernel_stride_i + j * kernel_stride_j
        at += k_y * kernel_stride_y + k_x * kernel_stride_x
        # Pixels are summed over here, so K has to multiply one of the factors.
        k_ij = tl.load(kernel + at, mask=reads, other=0.0).to(tl.float32)
        scaled = (held.to(tl.float32) * k_ij[None, :]).to(OPERAND)
        total = tl.dot(scaled, v.to(OPERAND), total, input_precision=PRECISION)
        image, y, x_ = pixels_further(image, y, x_, stride, height, width)
        exists = image < batch
    filter_tap = taps - 1 - tap if FLIPPED else tap
    at = (group * outer + o[:, None]) * out_stride_o + filter_tap * out_stride_t + c[None, :] * out_stride_i
    some = (o < outer)[:, None] & (c < inner)[None, :]
    if ADD:
        tl.atomic_add(out + at, total, mask=some, sem="relaxed")
    else:
        tl.store(out + at + tl.program_id(1).to(tl.int64) * out_stride_s, total, mask=some)


@triton.jit
def _direct_kernel(
    here, x, kernel, out,
    here_stride_b, here_stride_c, here_stride_y, here_stride_x,
    x_stride_b, x_stride_c, x_stride_y, x_stride_x,
    kernel_stride_b, kernel_stride_c, kernel_stride_i, kernel_stride_j, kernel_stride_y, kernel_stride_x,
    out_stride_s, out_stride_o, out_stride_t, out_stride_i,
    batch, height, width, x_height, x_width, groups, outer, inner,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, AT_SOURCE: tl.constexpr, FLIPPED: tl.constexpr, ADD: tl.constexpr,
    INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """`_dot_kernel` without matrix units: a tile's channels are of any groups, and read one channel each."""
    taps = ROWS.taps * COLUMNS.taps
    channels = groups * outer
    tap = tl.program_id(0) % taps
    i = tap // COLUMNS.taps
    j = tap % COLUMNS.taps
    c = tl.program_id(0) // taps % inner
    o = tl.program_id(0) // taps // inner * BLOCK_O + tl.arange(0, BLOCK_O)
    at_o = o.to(INDEX) * here_stride_c
    at_c = (o // outer * inner + c).to(INDEX) * x_stride_c

    total = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    image, y, x_, exists = tile_of_pixels(tl.program_id(1), 0, batch, height, width, ROWS, COLUMNS, BLOCK_P, INDEX)
    stride = tl.num_programs(1).to(INDEX) * BLOCK_P  # from a tile to the next, in pixels
    for _ in range(tl.program_id(1), tl.cdiv(batch * height * width, BLOCK_P), tl.num_programs(1)):
        read_y = read_at(y, i, ROWS)
        read_x = read_at(x_, j, COLUMNS)
        reads = exists & is_in(read_y, read_x, x_height, x_width)
        at = image * here_stride_b + y * here_stride_y + x_ * here_stride_x
        held = load_channels(here, at, at_o, reads, o < channels).to(tl.float32)
        at = image * x_stride_b + read_y * x_stride_y + read_x * x_stride_x
        v = load_channels(x, at, at_c, reads, o < channels).to(tl.float32)
        k_y = read_y if AT_SOURCE else y
        k_x = read_x if AT_SOURCE else x_
        at = image * kernel_stride_b + i * kernel_stride_i + j * kernel_stride_j
        at += k_y * kernel_stride_y + k_x * kernel_stride_x
        total += held * v * tl.load(kernel + at, mask=reads, other=0.0).to(tl.float32)[None, :]
        image, y, x_ = pixels_further(image, y, x_, stride, height, width)
        exists = image < batch
    filter_tap = taps - 1 - tap if FLIPPED else tap
    at = o * out_stride_o + filter_tap * out_stride_t + c * out_stride_i
    result = tl.sum(total, axis=1)
    if ADD:
        tl.atomic_add(out + at, result, mask=o < channels, sem="relaxed")
    else:
        tl.store(out + at + tl.program_id(1).to(tl.int64) * out_stride_s, result, mask=o < channels)


class WeightGradient(NamedTuple):
    """All of a weight's gradient that follows from its shapes."""

    launch: Run
    device: torch.device
    sums: Layout  # what the kernel writes
    added: bool  # to zeros, by several programs
    slabbed: bool  # slabs of it, to be added, along a first axis
    out: Layout

    def run(self, here: Tensor, x: Tensor, kernel: Tensor) -> Tensor:
        """The gradient."""
        sums = self.sums.empty(self.device)
        if self.added:
            sums.zero_()
        self.launch(here, x, kernel, sums)
        if not self.added and not self.slabbed:
            return sums
        total = sums.sum(dim=0) if self.slabbed else sums
        last = torch.channels_last if self.out.last else torch.contiguous_format
        return total.to(self.out.dtype, memory_format=last)


def weight_gradient(
    here: Layout,
    x: Layout,
    kernel: Layout,
    weight: Layout,
    walk: Walk,
    groups: int,
    settings: Settings,
    *,
    at_source: bool = False,
    flipped: bool = False,
) -> WeightGradient:
    """The plan of sum_p here[p, o] K x[read by p under the tap, c]: [groups * outer, inner, kh, kw].

    Args:
        here: [B, groups * outer, H, W].
        x: what the taps read, [B, groups * inner, XH, XW].
        kernel: K, of size (H, W), or (XH, XW) with `at_source`.
        weight: gives the result its dtype and format.
        walk: from here's pixels to x's; every tap reads, so that there is nothing to skip.
        groups: of channels.
        settings: the device, and switches.
        at_source: K is indexed by the pixel read.
        flipped: the weight's taps come in the opposite order.
    """
    batch, channels, height, width = here.shape
    outer, inner = channels // groups, x.shape[1] // groups
    taps = walk.rows.taps * walk.columns.taps
    arguments: dict[str, Any] = {
        **strides("here", here),
        **strides("x", x),
        **strides("kernel", kernel, "bcijyx"),
        **walked(walk, (height, width), x),
        "groups": groups,
        "outer": outer,
        "inner": inner,
        "AT_SOURCE": at_source,
        "FLIPPED": flipped,
        "INDEX": index_type(here, x, kernel),
    }
    direct = not is_product(inner, outer)

    def tiles_of(meta: Meta) -> int:
        if direct:
            return cdiv(channels, meta["BLOCK_O"]) * inner * taps
        return groups * cdiv(outer, meta["BLOCK_O"]) * cdiv(inner, meta["BLOCK_I"]) * taps

    def slabs_of(meta: Meta) -> int:
        return tiles.splits(settings.device, tiles_of(meta), cdiv(batch * height * width, meta["BLOCK_P"]))

    def launch(meta: Meta) -> Launch:
        grid = (tiles_of(meta), slabs_of(meta))
        return Launch(_direct_kernel if direct else _dot_kernel, grid, arguments | meta, settings.device)

    def steps(meta: Meta, multiprocessors: int) -> float:  # the sum over pixels is split wherever it can be
        return tiles_of(meta) * cdiv(batch * height * width, meta["BLOCK_P"]) / multiprocessors

    if direct:
        metas = [tiles.elementwise(here.strides, channels)]
    else:
        arguments |= products(settings.precision, x, here)
        metas = tiles.products(OF_WEIGHT, arguments, steps, settings.device, "BLOCK_P", winners.OF_WEIGHT)
    out = Layout.dense(weight.shape, weight.dtype, last=weight.last)
    split = any(slabs_of(meta) > 1 for meta in metas)
    added, slabbed = split and not settings.deterministic, split and settings.deterministic
    sums = Layout.dense(weight.shape, torch.float32, last=True) if split else out
    if slabbed:
        sums = Layout((slabs_of(metas[0]), *sums.shape), (channels * inner * taps, *sums.strides), torch.float32)
    to_slab = sums.strides[0] if slabbed else 0
    to_channel, beside, _, across = sums.strides[-4:]
    arguments |= {
        "ADD": added,
        "out_stride_s": to_slab,
        "out_stride_o": to_channel,
        "out_stride_t": across,
        "out_stride_i": beside,
    }
    run = tiles.fastest(launch, metas, sums=[3] if added else [])
    return WeightGradient(run, settings.device, sums, added, slabbed, out)
