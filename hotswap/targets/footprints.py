"""The footprints of a guided enlargement, by its factor."""

import math
from collections.abc import Sequence

from hotswap.choices import FOOTPRINTS


def by_factor(coarse: Sequence[int], fine: Sequence[int], end: Sequence[int] | None = None) -> tuple[int, ...]:
    """A step for each factor of 2; each step reaches a pixel further on either side than the one after it.

    So the cost is that of 2 x 2 neighbours at full size, and the coarsest map, which is small, sees most of them.

    Args:
        coarse: height and width of the map.
        fine: what it is enlarged to.
        end: what other enlargements make of that, where there are any.
    """
    after = 0 if end is None else _doublings(fine, end)
    steps = max(1, _doublings(coarse, fine))
    return tuple(min(2 * (after + n), FOOTPRINTS[-1]) for n in range(steps, 0, -1))


def _doublings(coarse: Sequence[int], fine: Sequence[int]) -> int:
    return max(round(math.log2(max(b / a, 1))) for a, b in zip(coarse, fine, strict=True))
