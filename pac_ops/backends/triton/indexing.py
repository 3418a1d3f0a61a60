"""Functions of several kernels: tiles of pixels, and where a tap of each reads."""

# Triton is untyped, and its constants are written in capitals.
# mypy: disable-error-code="import-untyped,import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803

import triton
import triton.language as tl


@triton.jit
def tile_of_pixels(
    tile, phase, batch, height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, INDEX
):
    """Image, row and column of each pixel of a tile, and whether it exists.

    The pixels of one phase are those whose row and column leave one remainder by the axis' divisor, so that all of
    them read under the same taps.
    """
    rows = tl.cdiv(height, ROWS.divide)
    columns = tl.cdiv(width, COLUMNS.divide)
    pixel = tl.full((BLOCK,), BLOCK, INDEX) * tile + tl.arange(0, BLOCK)
    image = pixel // (rows * columns)
    within = pixel % (rows * columns)
    y = within // columns * ROWS.divide + phase // COLUMNS.divide
    x = within % columns * COLUMNS.divide + phase % COLUMNS.divide
    return image, y, x, (image < batch) & (y < height) & (x < width)


@triton.jit
def box_of_pixels(tile, height, width, BOX: tl.constexpr, BLOCK: tl.constexpr, INDEX):
    """`tile_of_pixels` of a rectangle so wide, of one image, and the row and column it begins at."""
    columns = tl.cdiv(width, BOX)
    rows = tl.cdiv(height, BLOCK // BOX)
    image = tile // (rows * columns)
    top = tile // columns % rows * (BLOCK // BOX)
    left = tile % columns * BOX
    y = (top + tl.arange(0, BLOCK) // BOX).to(INDEX)
    x = (left + tl.arange(0, BLOCK) % BOX).to(INDEX)
    return image, y, x, (y < height) & (x < width), top, left


@triton.jit
def pixels_further(image, y, x, stride, height, width):
    """Where each pixel is so many pixels further on: without a division of each, which takes as long as a product."""
    x += stride % width
    carry = (x >= width).to(x.dtype)
    x -= carry * width
    y += stride // width % height + carry
    carry = (y >= height).to(y.dtype)
    y -= carry * height
    return image + stride // width // height + carry, y, x


@triton.jit
def first_tap(phase, AXIS: tl.constexpr):
    """The first tap under which pixels of this phase read anything; the number of taps if there is none."""
    if AXIS.divide == 1:
        return 0
    else:  # noqa: RET505 (Triton compiles what follows a return)
        tap = tl.arange(0, triton.next_power_of_2(AXIS.taps))
        reads = (phase + AXIS.offset + tap * AXIS.step) % AXIS.divide == 0
        return tl.min(tl.where(reads & (tap < AXIS.taps), tap, AXIS.taps))


@triton.jit
def count_taps(first, AXIS: tl.constexpr):
    """How many taps there are from the first on, a jump apart."""
    if AXIS.divide == 1:
        return AXIS.taps
    else:  # noqa: RET505
        return (AXIS.taps - first + AXIS.jump - 1) // AXIS.jump


@triton.jit
def read_at(pixel, tap, AXIS: tl.constexpr):
    """Where a tap reads, for pixels and taps of which it is known that they read."""
    return (pixel * AXIS.multiply + AXIS.offset + tap * AXIS.step) // AXIS.divide


@triton.jit
def load_channels(pointer, at_pixel, at_channel, pixels, channels):
    """[channels, pixels] of a tensor, 0 where either does not exist.

    Pixels come last because where nothing is known to lie side by side, which is so of pixels unless the width is a
    multiple of 16, Triton lets neighbouring threads read along the last axis. Where channels are known to, it reads
    along them.
    """
    return tl.load(
        pointer + at_channel[:, None] + at_pixel[None, :], mask=channels[:, None] & pixels[None, :], other=0.0
    )


@triton.jit
def store_channels(pointer, at_pixel, at_channel, values, pixels, channels):
    """The way back of `load_channels`."""
    at = at_channel[:, None] + at_pixel[None, :]
    tl.store(pointer + at, values.to(pointer.dtype.element_ty), mask=channels[:, None] & pixels[None, :])


@triton.jit
def is_in(y, x, height, width):
    """Whether a pixel lies in an image."""
    return (y >= 0) & (y < height) & (x >= 0) & (x < width)
