"""Weights as the kernels read them: filters whose input channels, or output channels, lie side by side."""

from typing import Any, NamedTuple

from pac_ops import formats
from pac_ops.backends.triton.layout import Layout
from pac_ops.backends.triton.tiles import Meta

WARP, LINE = 32, 128  # threads that load together; bytes of a line of memory, of which one is looked up in a cycle
OF_A_COPY = 5000  # cycles: 3 us
_NAMES = tuple(f"weight_stride_{axis}" for axis in "gtoi")


class Filters(NamedTuple):
    """A weight, and which filters it stands for: [groups, taps, outer, inner]."""

    weight: Layout  # [groups * outer, inner, kh, kw]
    swapped: bool = False  # [groups * inner, outer, kh, kw]
    flipped: bool = False  # taps in the opposite order

    @property
    def scattered(self) -> bool:
        """Whether a kernel can only read a copy: taps need one step."""
        (_, _, rows, columns), (_, _, down, across) = self.weight.shape, self.weight.strides
        return not (rows == 1 or columns == 1 or down == columns * across)

    @property
    def apart(self) -> bool:
        """Whether channels lie apart, as those of channels-last weights do not: they are loaded one by one."""
        return self.weight.strides[1] != 1

    def copied(self, steps: Any, meta: Meta) -> bool:
        """Whether a product reads a channels-last copy, made at each call.

        It pays where a multiprocessor takes many steps. It is not kept for the next call: what is written through
        `weight.data`, as some optimisers and pruners do, and by a CUDA graph, no count of changes shows.
        """
        if self.scattered or not self.apart:
            return self.scattered
        lines = WARP * self.weight.dtype.itemsize * self.weight.shape[2] * self.weight.shape[3] / LINE
        reads = meta["BLOCK_O"] * meta["BLOCK_I"] / WARP * max(1, lines)
        return not isinstance(steps, int) or steps * reads > OF_A_COPY  # sizes may be symbols, in a trace


def weight_strides(filters: Filters | None, groups: int, *, copied: bool) -> dict[str, int]:
    """A kernel's arguments: steps from group to group, tap to tap, an output or input channel to the next.

    `copied`: of the channels-last copy.
    """
    if filters is None:
        return dict.fromkeys(_NAMES, 0)
    shape = filters.weight.shape
    first, second, down, across = formats.strides(shape, last=True) if copied else filters.weight.strides
    outer, inner = (second, first) if filters.swapped else (first, second)
    return dict(
        zip(_NAMES, (shape[0] // groups * first, down if shape[3] == 1 else across, outer, inner), strict=True)
    )
