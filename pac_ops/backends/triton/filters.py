"""Weights as the kernels read them: filters whose input channels, or output channels, lie side by side."""

from typing import NamedTuple

from pac_ops import formats
from pac_ops.backends.triton.layout import Layout

_NAMES = tuple(f"weight_stride_{axis}" for axis in "gtoi")


class Filters(NamedTuple):
    """A weight, and which filters it stands for: [groups, taps, outer, inner]."""

    weight: Layout  # [groups * outer, inner, kh, kw]
    swapped: bool = False  # [groups * inner, outer, kh, kw]
    flipped: bool = False  # taps in the opposite order

    def lie_apart(self, *, product: bool) -> bool:
        """Whether a kernel can only read a copy: taps need one step; for a product, channels must lie side by side.

        Channels-last weights do. No copy is kept for the next call: what is written through `weight.data`, as some
        optimisers and pruners do, no count of changes shows.
        """
        (_, _, rows, columns), (_, beside, down, across) = self.weight.shape, self.weight.strides
        one_step = rows == 1 or columns == 1 or down == columns * across
        return not one_step or (product and beside != 1)


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
