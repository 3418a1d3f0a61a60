"""Blocks of output rows, and views of the pixels that the taps of a block read."""

from collections.abc import Iterator

from torch import Tensor

from pac_ops.geometry import Window, taps

# Elements of a block's buffer: 4 MiB in float32. Smaller blocks make thin, slow matrix products, larger ones leave
# the cache; from 2**19 to 2**21 it made little difference on the shapes in benchmarks/.
BLOCK_ELEMENTS = 2**20


def blocks(channels: int, window: Window, out: Tensor) -> Iterator[tuple[int, slice]]:
    """Image and output rows of each block, for a buffer of all taps of so many channels."""
    kh, kw = window.kernel_size
    b, _, ho, wo = out.shape
    for n in range(b):
        for rows in bands(ho, channels * kh * kw * wo):
            yield n, rows


def bands(rows: int, elements: int) -> Iterator[slice]:
    """Bands of rows, each of at most BLOCK_ELEMENTS at `elements` a row, but at least of one row."""
    count = max(1, BLOCK_ELEMENTS // max(1, elements))
    for first in range(0, rows, count):
        yield slice(first, min(first + count, rows))


def all_tap_views(image: Tensor, window: Window, rows: slice, wo: int) -> Tensor:
    """A view of the pixels that all taps read for some output rows: [C, H, W] -> [C, kh, kw, rows, Wo]."""
    (kh, kw), (sy, sx), _, (dy, dx) = window
    channel, row, column = image.stride()
    size = (image.shape[0], kh, kw, rows.stop - rows.start, wo)
    steps = (channel, dy * row, dx * column, sy * row, sx * column)
    return image.as_strided(size, steps, image.storage_offset() + rows.start * sy * row)


def tap_views(image: Tensor, window: Window, rows: slice, wo: int) -> Iterator[tuple[int, int, Tensor]]:
    """For each tap, a view of the pixels it reads for some output rows: [C, H, W] -> (i, j, [C, rows, Wo])."""
    first = rows.start * window.stride[0]
    return taps(image[:, first:], window, rows.stop - rows.start, wo)


def add_to_taps(values: Tensor, image: Tensor, window: Window, rows: slice) -> None:
    """Add each tap's values to the pixels it reads, the transpose of `all_tap_views`.

    One tap at a time: the taps of one view overlap, and adding to overlapping memory is not defined.
    """
    for i, j, view in tap_views(image, window, rows, values.shape[-1]):
        view += values[:, i, j]


def crop(padded: Tensor, window: Window) -> Tensor:
    """An image without the window's padding around it."""
    rows, columns = window.padding
    return padded[:, :, rows : padded.shape[2] - rows, columns : padded.shape[3] - columns].contiguous()
