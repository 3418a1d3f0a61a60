"""sum_taps K * (W_tap v_tap): the kernel under every convolution, either way, and the gradients of its input and K.

K is one number a pixel and tap. For the sum alone it is multiplied into the operand, in float32: in 16 bits that is
then rounded to the operand's dtype, by no more than the input itself was. So there is one accumulator, which leaves
registers for tiles of 128 x 256. The gradient of K is the tap's sum over channels, seen from the other side, times
what a pixel holds: one product serves the gradients of input and K, and K multiplies that sum, in float32.
"""

# Triton is untyped, and its constants are written in capitals.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pac_ops.backends.triton import tiles, winners
from pac_ops.backends.triton.arguments import cdiv, index_type, products, strides, walked
from pac_ops.backends.triton.cycles import SUM, WITH_GRADIENT
from pac_ops.backends.triton.filters import Filters, weight_strides
from pac_ops.backends.triton.indexing import (
    count_taps,
    first_tap,
    is_in,
    load_channels,
    read_at,
    store_channels,
    tile_of_pixels,
)
from pac_ops.backends.triton.launch import Launch, Run
from pac_ops.backends.triton.layout import Layout, Settings
from pac_ops.backends.triton.tiles import Meta
from pac_ops.backends.triton.walk import Walk

# Below so many weights a group and tap, matrix units would multiply mostly padding: 16 is their smallest side.
SMALLEST_PRODUCT = 16 * 16


@triton.jit
def _dot_kernel(
    x,  # [B, groups * inner, XH, XW], read under the taps
    kernel,  # [B, 1, kh, kw, ...], None where only its gradient is wanted
    weight,  # [groups, taps, outer, inner] by its strides
    bias,  # [groups * outer] or None
    out,  # [B, groups * outer, H, W], None where only K's gradient is wanted
    factor,  # as out: what K's gradient multiplies the sums by
    grad_kernel,  # [slabs, B, 1, kh, kw, XH, XW] or None
    x_stride_b, x_stride_c, x_stride_y, x_stride_x,
    kernel_stride_b, kernel_stride_c, kernel_stride_i, kernel_stride_j, kernel_stride_y, kernel_stride_x,
    weight_stride_g, weight_stride_t, weight_stride_o, weight_stride_i,
    out_stride_b, out_stride_c, out_stride_y, out_stride_x,
    factor_stride_b, factor_stride_c, factor_stride_y, factor_stride_x,
    grad_kernel_stride_s, grad_kernel_stride_b, grad_kernel_stride_c, grad_kernel_stride_i, grad_kernel_stride_j,
    grad_kernel_stride_y, grad_kernel_stride_x,
    batch, height, width, x_height, x_width, groups, inner, outer,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    AT_SOURCE: tl.constexpr,  # K is indexed by the pixel read, not by the pixel that reads
    FLIPPED: tl.constexpr,  # the weight's taps come in the opposite order
    OUTPUT: tl.constexpr, GRADIENT: tl.constexpr,
    ADD: tl.constexpr,  # programs of several channel tiles add to K's gradient, instead of having a slab each
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    # Programs that read the same pixels are neighbours.
    tiles = tl.cdiv(outer, BLOCK_O)
    part = tl.program_id(0) % (groups * tiles)
    group = part // tiles
    phase = tl.program_id(0) // (groups * tiles) % (ROWS.divide * COLUMNS.divide)
    tile = tl.program_id(0) // (groups * tiles) // (ROWS.divide * COLUMNS.divide)
    image, y, x_, exists = tile_of_pixels(tile, phase, batch, height, width, ROWS, COLUMNS, BLOCK_P, INDEX)
    o = part % tiles * BLOCK_O + tl.arange(0, BLOCK_O)
    has_o = o < outer
    channel = (group * outer + o).to(INDEX)

    first_i = first_tap(phase // COLUMNS.divide, ROWS)
    first_j = first_tap(phase % COLUMNS.divide, COLUMNS)
    taps_j = count_taps(first_j, COLUMNS)
    blocks = tl.cdiv(inner, BLOCK_I)
    total = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
    if GRADIENT:
        product = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
        at = image * factor_stride_b + y * factor_stride_y + x_ * factor_stride_x
        held = tl.trans(load_channels(factor, at, channel * factor_stride_c, exists, has_o))
        slab = 0 if ADD else part.to(tl.int64) * grad_kernel_stride_s
    # One loop over taps and blocks of channels, not two, so that loads run ahead from tap to tap; the three counters
    # are carried along, as divisions of one would take longer than a product.
    i = first_i
    j = first_j
    block = 0
    for _ in range(count_taps(first_i, ROWS) * taps_j * blocks):
        read_y = read_at(y, i, ROWS)
        read_x = read_at(x_, j, COLUMNS)
        reads = exists & is_in(read_y, read_x, x_height, x_width)
        if OUTPUT:  # loaded before the product, which hides how long that takes
            k_y = read_y if AT_SOURCE else y
            k_x = read_x if AT_SOURCE else x_
            at = image * kernel_stride_b + i * kernel_stride_i + j * kernel_stride_j
            at += k_y * kernel_stride_y + k_x * kernel_stride_x
            k_ij = tl.load(kernel + at, mask=reads, other=0.0).to(tl.float32)

        c = block * BLOCK_I + tl.arange(0, BLOCK_I)
        at = image * x_stride_b + read_y * x_stride_y + read_x * x_stride_x
        at_channel = (group * inner + c).to(INDEX) * x_stride_c
        v = tl.trans(load_channels(x, at, at_channel, reads, c < inner))
        tap = i * COLUMNS.taps + j
        if FLIPPED:
            tap = ROWS.taps * COLUMNS.taps - 1 - tap
        at_filter = group * weight_stride_g + tap * weight_stride_t + o * weight_stride_o
        filters = tl.load(
            weight + at_filter[None, :] + c[:, None] * weight_stride_i,
            mask=(c < inner)[:, None] & has_o[None, :],
            other=0.0,
        )
        last = block == blocks - 1  # all of the tap's channels are summed
        if GRADIENT:
            product = tl.dot(v.to(OPERAND), filters.to(OPERAND), product, input_precision=PRECISION)
            if last:
                if OUTPUT:
                    total += product * k_ij[:, None]
                pull = tl.sum(product * held.to(tl.float32), axis=1)
                at = image * grad_kernel_stride_b + i * grad_kernel_stride_i + j * grad_kernel_stride_j
                at += read_y * grad_kernel_stride_y + read_x * grad_kernel_stride_x
                if ADD:
                    tl.atomic_add(grad_kernel + at, pull, mask=reads, sem="relaxed")
                else:
                    tl.store(grad_kernel + slab + at, pull, mask=reads)
                product = tl.zeros((BLOCK_P, BLOCK_O), tl.float32)
        else:
            v = (v.to(tl.float32) * k_ij[:, None]).to(OPERAND)
            total = tl.dot(v, filters.to(OPERAND), total, input_precision=PRECISION)

        block = tl.where(last, 0, block + 1)
        j = tl.where(last, j + COLUMNS.jump, j)
        ends = j >= COLUMNS.taps
        i = tl.where(ends, i + ROWS.jump, i)
        j = tl.where(ends, first_j, j)
    if OUTPUT:
        if bias is not None:
            total += tl.load(bias + channel, mask=has_o, other=0.0).to(tl.float32)[None, :]
        at = image * out_stride_b + y * out_stride_y + x_ * out_stride_x
        store_channels(out, at, channel * out_stride_c, tl.trans(total), exists, has_o)


@triton.jit
def _direct_kernel(
    x, kernel,
    weight,  # or None: all ones
    bias, out, factor, grad_kernel,
    x_stride_b, x_stride_c, x_stride_y, x_stride_x,
    kernel_stride_b, kernel_stride_c, kernel_stride_i, kernel_stride_j, kernel_stride_y, kernel_stride_x,
    weight_stride_g, weight_stride_t, weight_stride_o, weight_stride_i,
    out_stride_b, out_stride_c, out_stride_y, out_stride_x,
    factor_stride_b, factor_stride_c, factor_stride_y, factor_stride_x,
    grad_kernel_stride_s, grad_kernel_stride_b, grad_kernel_stride_c, grad_kernel_stride_i, grad_kernel_stride_j,
    grad_kernel_stride_y, grad_kernel_stride_x,
    batch, height, width, x_height, x_width, groups, inner, outer,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, AT_SOURCE: tl.constexpr, FLIPPED: tl.constexpr, OUTPUT: tl.constexpr,
    GRADIENT: tl.constexpr, ADD: tl.constexpr,
    CHANNEL_WISE: tl.constexpr,  # K has a channel axis, which follows the output's
    INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
):  # fmt: skip
    """`_dot_kernel` without matrix units: a tile's channels are of any number of groups."""
    channels = groups * outer
    tiles = tl.cdiv(channels, BLOCK_O)
    part = tl.program_id(0) % tiles
    phase = tl.program_id(0) // tiles % (ROWS.divide * COLUMNS.divide)
    tile = tl.program_id(0) // tiles // (ROWS.divide * COLUMNS.divide)
    image, y, x_, exists = tile_of_pixels(tile, phase, batch, height, width, ROWS, COLUMNS, BLOCK_P, INDEX)
    o = part * BLOCK_O + tl.arange(0, BLOCK_O)
    group = o // outer
    has_o = o < channels
    channel = o.to(INDEX)

    first_i = first_tap(phase // COLUMNS.divide, ROWS)
    first_j = first_tap(phase % COLUMNS.divide, COLUMNS)
    taps_j = count_taps(first_j, COLUMNS)
    total = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
    if GRADIENT:
        at = image * factor_stride_b + y * factor_stride_y + x_ * factor_stride_x
        held = load_channels(factor, at, channel * factor_stride_c, exists, has_o).to(tl.float32)
        slab = 0 if ADD else part.to(tl.int64) * grad_kernel_stride_s
    for tap in range(count_taps(first_i, ROWS) * taps_j):
        i = first_i + tap // taps_j * ROWS.jump
        j = first_j + tap % taps_j * COLUMNS.jump
        read_y = read_at(y, i, ROWS)
        read_x = read_at(x_, j, COLUMNS)
        reads = exists & is_in(read_y, read_x, x_height, x_width)

        product = tl.zeros((BLOCK_O, BLOCK_P), tl.float32)
        at = image * x_stride_b + read_y * x_stride_y + read_x * x_stride_x
        for c in range(inner):
            at_channel = (group * inner + c).to(INDEX) * x_stride_c
            v = load_channels(x, at, at_channel, reads, has_o).to(tl.float32)
            if weight is not None:
                at_tap = i * COLUMNS.taps + j
                if FLIPPED:
                    at_tap = ROWS.taps * COLUMNS.taps - 1 - at_tap
                at_filter = group * weight_stride_g + at_tap * weight_stride_t + o % outer * weight_stride_o
                filters = tl.load(weight + at_filter + c * weight_stride_i, mask=has_o, other=0.0)
                v *= filters.to(tl.float32)[:, None]
            product += v

        if OUTPUT:
            k_y = read_y if AT_SOURCE else y
            k_x = read_x if AT_SOURCE else x_
            at = image * kernel_stride_b + i * kernel_stride_i + j * kernel_stride_j
            at += k_y * kernel_stride_y + k_x * kernel_stride_x
            if CHANNEL_WISE:
                total += product * load_channels(kernel, at, channel * kernel_stride_c, reads, has_o).to(tl.float32)
            else:
                total += product * tl.load(kernel + at, mask=reads, other=0.0).to(tl.float32)[None, :]
        if GRADIENT:
            at = image * grad_kernel_stride_b + i * grad_kernel_stride_i + j * grad_kernel_stride_j
            at += read_y * grad_kernel_stride_y + read_x * grad_kernel_stride_x
            if CHANNEL_WISE:
                store_channels(grad_kernel, at, channel * grad_kernel_stride_c, product * held, reads, has_o)
            elif ADD:
                tl.atomic_add(grad_kernel + at, tl.sum(product * held, axis=0), mask=reads, sem="relaxed")
            else:
                tl.store(grad_kernel + slab + at, tl.sum(product * held, axis=0), mask=reads)
    if OUTPUT:
        if bias is not None:
            total += tl.load(bias + channel, mask=has_o, other=0.0).to(tl.float32)[:, None]
        at = image * out_stride_b + y * out_stride_y + x_ * out_stride_x
        store_channels(out, at, channel * out_stride_c, total, exists, has_o)


class Gather(NamedTuple):
    """All of a gather that follows from its shapes."""

    launch: Run
    device: torch.device
    out: Layout | None
    slabs: Layout | None  # what K's gradient is summed in
    copied: bool  # the weight, channels-last
    slabbed: bool  # a slab for each part of the channels, to be added

    def run(
        self,
        x: Tensor,
        kernel: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        factor: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The sum, and K's gradient."""
        out = None if self.out is None else self.out.empty(self.device)
        if self.copied and weight is not None:
            weight = weight.contiguous(memory_format=torch.channels_last)
        bias = None if bias is None else bias.contiguous()
        if self.slabs is None:
            self.launch(x, kernel, weight, bias, out, factor, None)
            return out, None
        slabs = torch.zeros(self.slabs.shape, dtype=torch.float32, device=self.device)
        self.launch(x, kernel, weight, bias, out, factor, slabs)
        return out, slabs.sum(dim=0) if self.slabbed else slabs

    def result(self, x: Tensor, kernel: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """The sum alone."""
        out, _ = self.run(x, kernel, weight, bias)
        assert out is not None  # noqa: S101 (for the type checker)
        return out


def is_product(channels: int, others: int) -> bool:
    """Whether matrix units multiply so many channels of a group with so many others."""
    return channels * others >= SMALLEST_PRODUCT


def gather(
    x: Layout,
    kernel: Layout,
    filters: Filters | None,
    out: Layout,
    walk: Walk,
    groups: int,
    settings: Settings,
    *,
    at_source: bool = False,
    factor: Layout | None = None,
    output: bool = True,
) -> Gather:
    """The plan of the sum, and of K's gradient where `factor` is given.

    Args:
        x: what the taps read, [B, groups * inner, XH, XW].
        kernel: K, of size (H, W), or (XH, XW) with `at_source`.
        filters: the weight; or None for all ones with one channel a group.
        out: the output, [B, groups * outer, H, W].
        walk: from a pixel of the output to those it reads.
        groups: of channels.
        settings: the device, and switches.
        at_source: K is indexed by the pixel read.
        factor: of the output's size. K's gradient, of K's size, is its product with each tap's sum, summed over
            channels. Only with `at_source`.
        output: whether the sum is wanted.
    """
    batch, channels, height, width = out.shape
    inner, outer = x.shape[1] // groups, channels // groups
    channel_wise = kernel.shape[1] > 1
    direct = filters is None or not is_product(inner, outer)
    copied = filters is not None and filters.lie_apart(product=not direct)
    arguments: dict[str, Any] = {
        **strides("x", x),
        **strides("kernel", kernel, "bcijyx"),
        **weight_strides(filters, groups, copied=copied),
        **strides("out", out if output else None),
        **strides("factor", factor),
        **walked(walk, (height, width), x),
        "groups": groups,
        "inner": inner,
        "outer": outer,
        "AT_SOURCE": at_source,
        "FLIPPED": filters is not None and filters.flipped,
        "OUTPUT": output,
        "GRADIENT": factor is not None,
    }
    pixels = cdiv(height, walk.rows.divide) * cdiv(width, walk.columns.divide) * batch

    def parts_of(meta: Meta) -> int:
        return cdiv(channels, meta["BLOCK_O"]) if direct else groups * cdiv(outer, meta["BLOCK_O"])

    def programs(meta: Meta) -> int:
        return cdiv(pixels, meta["BLOCK_P"]) * walk.phases * parts_of(meta)

    def steps(meta: Meta, multiprocessors: int) -> int:
        return cdiv(programs(meta), multiprocessors) * cdiv(inner, meta["BLOCK_I"])

    if direct:
        arguments["CHANNEL_WISE"] = channel_wise
        metas = [tiles.elementwise(x.strides, channels)]
    else:
        assert filters is not None  # noqa: S101 (for the type checker)
        arguments |= products(settings.precision, x, filters.weight)
        cycles, name = (SUM, winners.SUM) if factor is None else (WITH_GRADIENT, winners.WITH_GRADIENT)
        metas = tiles.products(cycles, arguments, steps, settings.device, "BLOCK_I", name)
    parts = parts_of(metas[0])
    slabbed = factor is not None and settings.deterministic and not channel_wise
    of_kernel = None if factor is None else Layout.dense(kernel.shape, torch.float32)
    slabs = Layout.dense((parts, *kernel.shape), torch.float32) if slabbed else of_kernel
    arguments |= {
        **strides("grad_kernel", of_kernel, "bcijyx"),
        "grad_kernel_stride_s": slabs.strides[0] if slabs is not None and slabbed else 0,
        "ADD": not slabbed,
        "INDEX": index_type(x, kernel, out if output else None, factor, of_kernel),
    }
    code = _direct_kernel if direct else _dot_kernel

    def launch(meta: Meta) -> Launch:
        return Launch(code, (programs(meta),), arguments | meta, settings.device)

    run = tiles.fastest(launch, metas, sums=[6])
    return Gather(run, settings.device, out if output else None, slabs, copied, slabbed)


def gradients(
    grad: Layout,
    input: Layout,
    kernel: Layout,
    filters: Filters | None,
    out: Layout,
    back: Walk,
    groups: int,
    needs: Sequence[bool],
    settings: Settings,
) -> Gather | None:
    """The plan of the gradients of a gather: a pixel of the input gathers from the outputs that read it.

    Args:
        grad: of the output.
        input: what the taps read.
        kernel: K.
        filters: those of the gather, inner and outer channels exchanged.
        out: the gradient of the input.
        back: the walk back.
        groups: of channels.
        needs: which of the gradients of input and K are wanted.
        settings: the device, and switches.
    """
    if not (needs[0] or needs[1]):
        return None
    factor = input if needs[1] else None
    return gather(grad, kernel, filters, out, back, groups, settings, at_source=True, factor=factor, output=needs[0])
