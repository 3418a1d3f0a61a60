"""The footprints of a guided enlargement, by its factor."""

import math
from collections.abc import Sequence

from hotswap.choices import FOOTPRINTS

_STEPS = 3  # that scores are enlarged in, at least: their edges are soft over the pixels that three steps reach


def by_factor(
    coarse: Sequence[int], fine: Sequence[int], end: Sequence[int] | None = None, *, soft: bool = False
) -> tuple[tuple[int, ...], int]:
    """Footprints, one for each factor of 2, and how many of them follow halvings of the map.

    Each step reaches a pixel further on either side than the one after it. So the cost is that of 2 x 2 neighbours at
    full size, and the coarsest map, which is small, sees most of them. The edges of a network's scores are soft over
    several pixels of a fine map, so the steps of a small factor alone would not reach across them: the map is halved
    first.

    Args:
        coarse: height and width of the map.
        fine: what it is enlarged to.
        end: what other enlargements make of that, where there are any.
        soft: the map is of a network's scores, and no enlargement came before it.
    """
    after = 0 if end is None else _doublings(fine, end)
    steps = max(1, _doublings(coarse, fine))
    back = max(0, _STEPS - after - steps) if soft else 0
    return tuple(min(2 * (after + n), FOOTPRINTS[-1]) for n in range(back + steps, 0, -1)), back


def halvings(count: int, coarse: Sequence[int], fine: Sequence[int]) -> int:
    """How often the map is halved before so many steps, which end at the output: as often as the factor has fewer."""
    return max(0, count - max(1, _doublings(coarse, fine)))


def _doublings(coarse: Sequence[int], fine: Sequence[int]) -> int:
    return max(round(math.log2(max(b / a, 1))) for a, b in zip(coarse, fine, strict=True))
