"""The kernels of `gather`: a tile of the output's pixels and channels sums over taps and the input's channels."""

# Triton is untyped, and its constants are written in capitals.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803

import triton
import triton.language as tl

from pac_ops.backends.triton.indexing import (
    box_of_pixels,
    count_taps,
    first_tap,
    is_in,
    load_channels,
    read_at,
    store_channels,
    tile_of_pixels,
)


@triton.jit
def dot_kernel(
    x,  # [B, groups * inner, XH, XW], read under the taps
    kernel,  # [B, 1, kh, kw, ...], None where only its gradient is wanted
    weight,  # [groups, taps, outer, inner] by its strides
    bias,  # [groups * outer] or None
    out,  # [B, groups * outer, H, W], None where only K's gradient is wanted; [SPLITS, ...] of partial sums
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
    APART: tl.constexpr,  # no channels of the weight lie side by side, the inner ones nearer than the outer ones
    OUTPUT: tl.constexpr, GRADIENT: tl.constexpr,
    SPLITS: tl.constexpr,  # programs that share the steps of one sum; whole taps, with the gradient
    ADD: tl.constexpr,  # programs of several channel tiles add to K's gradient, instead of having a slab each
    BOX: tl.constexpr,  # the width of a tile of pixels; x and weight are then descriptors of tensors; or 0
    OPERAND: tl.constexpr, PRECISION: tl.constexpr, INDEX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):  # fmt: skip
    """sum_taps K (W_tap v_tap), and, where `GRADIENT`, the gradient of K, with matrix products."""
    # Programs that read the same pixels are neighbours.
    tiles = tl.cdiv(outer, BLOCK_O)
    part = tl.program_id(0) % (groups * tiles)
    group = part // tiles
    phase = tl.program_id(0) // (groups * tiles) % (ROWS.divide * COLUMNS.divide)
    tile = tl.program_id(0) // (groups * tiles) // (ROWS.divide * COLUMNS.divide)
    if BOX:
        image, y, x_, exists, top, left = box_of_pixels(tile, height, width, BOX, BLOCK_P, INDEX)
    else:
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
    steps = count_taps(first_i, ROWS) * taps_j * blocks
    split = tl.program_id(1)
    if SPLITS > 1:
        unit = blocks if GRADIENT else 1
        each = tl.cdiv(tl.cdiv(steps, unit), SPLITS) * unit
        first = tl.minimum(split * each, steps)
        steps = tl.minimum(each, steps - first)
        block = first % blocks
        i += first // blocks // taps_j * ROWS.jump
        j += first // blocks % taps_j * COLUMNS.jump
    for _ in range(steps):
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
        if BOX:
            corner = [image, read_at(top, i, ROWS), read_at(left, j, COLUMNS), group * inner + block * BLOCK_I]
            v = x.load(corner).reshape(BLOCK_P, BLOCK_I)
        else:
            at = image * x_stride_b + read_y * x_stride_y + read_x * x_stride_x
            at_channel = (group * inner + c).to(INDEX) * x_stride_c
            v = tl.trans(load_channels(x, at, at_channel, reads, c < inner))
        tap = i * COLUMNS.taps + j
        if FLIPPED:
            tap = ROWS.taps * COLUMNS.taps - 1 - tap
        at_filter = group * weight_stride_g + tap * weight_stride_t + o * weight_stride_o
        if BOX:
            corner = [group * outer + part % tiles * BLOCK_O, tap, block * BLOCK_I]
            filters = tl.trans(weight.load(corner).reshape(BLOCK_O, BLOCK_I))
        elif APART:
            at_filter = weight + at_filter[:, None] + c[None, :] * weight_stride_i
            filters = tl.trans(tl.load(at_filter, mask=has_o[:, None] & (c < inner)[None, :], other=0.0))
        else:
            at_filter = weight + at_filter[None, :] + c[:, None] * weight_stride_i
            filters = tl.load(at_filter, mask=(c < inner)[:, None] & has_o[None, :], other=0.0)
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
            total += tl.load(bias + channel, mask=has_o & (split == 0), other=0.0).to(tl.float32)[None, :]
        at = image * out_stride_b + y * out_stride_y + x_ * out_stride_x
        if SPLITS > 1:
            out += split.to(tl.int64) * batch * groups * outer * height * width
        store_channels(out, at, channel * out_stride_c, tl.trans(total), exists, has_o)


@triton.jit
def direct_kernel(
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
    """`dot_kernel` without matrix units: a tile's channels are of any number of groups."""
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
