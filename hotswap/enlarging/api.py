"""Enlarge a map by its image."""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from hotswap.choices import DEPTH, LABELS, SCORES
from hotswap.enlarging import guides, labels, maps
from hotswap.errors import HotswapError
from hotswap.network.names import AUTO
from hotswap.targets import footprints
from hotswap.targets.entries import Footprint, check_footprint
from hotswap.targets.guide_spaces import SCALES, GuideSpace
from pac_ops import pacresize2d, pacresize2d_labels

_SLACK = 1.03  # factors along the two axes may differ by so much, beside the rounding of a pixel in each


@dataclass(frozen=True)
class Enlarged:
    """A map, enlarged, and how."""

    map: Any
    kind: str
    sizes: tuple[tuple[int, int], tuple[int, int]]  # height and width, before and after
    footprint: tuple[int, ...]
    halvings: int
    scale: float
    space: GuideSpace

    def to_dict(self) -> dict[str, Any]:
        """How, as plain JSON values."""
        before, after = (list(size) for size in self.sizes)
        return {
            "kind": self.kind,
            "from": before,
            "to": after,
            "footprint": list(self.footprint),
            "halvings": self.halvings,
            "scale": self.scale,
            "space": self.space.name,
        }


def enlarge(
    map: Any,
    image: Any,
    *,
    kind: str = AUTO,
    labels: bool = False,
    scale: float | str = AUTO,
    space: GuideSpace | str = AUTO,
    footprint: Footprint = AUTO,
    align_corners: bool = False,
    ignore: int | None = 255,
    stretched: bool = False,
) -> Any:
    """Enlarge a map to the size of its image, so that edges fall where the image has them.

        labels = hotswap.enlarge(logits, image, labels=True)

    It is `pac_ops.pacresize2d`, with a residual and in steps of 2, in a colour space whose distances look equal.

    Args:
        map: scores, [C, h, w] or [B, C, h, w]; labels, whole numbers [h, w] or [B, h, w]; depth, flow or a matte,
            [h, w], [B, h, w] or [B, C, h, w]: a tensor, a numpy array, or a PIL image (grey or with a palette:
            labels; 16 bits or floating: depth).
        image: what it is a map of: a tensor [3, H, W], an array [H, W, 3] or [3, H, W], or a PIL image; grey too; a
            batch where the map is one. uint8 in 0..255, or floating in 0..1.
        kind: "scores", "labels" or "depth", whose values stay within the range of their neighbours; "auto":
            whole numbers are labels, a floating [h, w] is depth, and all else scores.
        labels: of scores, the class of each pixel, int64, without the enlarged scores in memory; of a single
            channel, whether the logit is above 0.
        scale: how strongly the image guides; 0 is `F.interpolate`. "auto": 12 in Lab, 8 in RGB.
        space: "lab", "rgb", or a `hotswap.GuideSpace` that undoes the image's normalisation. "auto": "lab".
        footprint: see `pac_ops.pacresize2d`. "auto": by the factor, (6, 4, 2) for 8. Of more steps than the factor
            has, the first follow halvings of the map.
        align_corners: as in `F.interpolate`.
        ignore: the label that is no class; it stays where it is. None: all are classes.
        stretched: the map may have another aspect ratio than the image, as of a network that sees all images square.

    Returns:
        The map at the image's height and width, in the kind (tensor, array or picture) and dtype it came in.

    Raises:
        HotswapError: where map and image do not fit, or an argument is none of those that there are.
    """
    return enlarged(
        map,
        image,
        kind=kind,
        labels=labels,
        scale=scale,
        space=space,
        footprint=footprint,
        align_corners=align_corners,
        ignore=ignore,
        stretched=stretched,
    ).map


def enlarged(
    map: Any,
    image: Any,
    *,
    kind: str,
    labels: bool,
    scale: float | str,
    space: GuideSpace | str,
    footprint: Footprint,
    align_corners: bool,
    ignore: int | None,
    stretched: bool,
) -> Enlarged:
    """`enlarge`, with how it was done."""
    if not (ignore is None or type(ignore) is int):
        raise HotswapError(f"ignore must be a label, a whole number, or None, got {ignore!r}")
    given, pixels = maps.read(map, kind), guides.read(image)
    if labels and given.kind == DEPTH:
        raise HotswapError('labels are of scores, and the map is of depth; kind="scores" says otherwise')
    x = given.values
    coarse, fine = (x.shape[-2], x.shape[-1]), (pixels.shape[2], pixels.shape[3])
    _check_sizes(coarse, fine, stretched=stretched)
    if pixels.shape[0] != x.shape[0]:
        raise HotswapError(f"there must be an image for each map, got {pixels.shape[0]} and {x.shape[0]}")
    chosen = guides.space_of(space, pixels)
    strength = _scale(scale, chosen)
    steps, halvings = _steps(footprint, coarse, fine, soft=given.kind == SCORES)
    guide = guides.guide(pixels, chosen, x.device)
    return Enlarged(
        given.restored(*_result(given, guide, steps, halvings, strength, align_corners, labels, ignore)),
        given.kind,
        (coarse, fine),
        steps,
        halvings,
        strength,
        chosen,
    )


def _result(
    given: maps.Map,
    guide: Tensor,
    steps: tuple[int, ...],
    halvings: int,
    scale: float,
    align_corners: bool,
    labelled: bool,
    ignore: int | None,
) -> tuple[Tensor, bool]:
    """The enlarged map, and whether it is labels."""
    options: dict[str, Any] = {
        "align_corners": align_corners,
        "scale": scale,
        "footprint": steps,
        "halvings": halvings,
        "residual": True,
    }

    def to_scores(x: Tensor) -> Tensor:
        return pacresize2d(x, guide, bounded=given.kind == DEPTH, **options)

    def to_labels(x: Tensor) -> Tensor:
        return pacresize2d_labels(x, guide, **options)

    if given.kind == LABELS:
        size = (guide.shape[2], guide.shape[3])
        return labels.enlarged(given.values, size, labels.Ways(to_scores, to_labels), ignore, align_corners), True
    if not labelled:
        if not all(math.isfinite(x) for x in given.values.detach().aminmax()):
            raise HotswapError(
                f"a map of {given.kind} must be finite, got nan or infinity in it; fill these places first"
            )
        return to_scores(given.values), False
    with torch.no_grad():
        try:
            return to_labels(given.values), True
        except ValueError as error:
            raise HotswapError(f"labels of these scores cannot be told: {error}") from error


def _check_sizes(coarse: tuple[int, int], fine: tuple[int, int], *, stretched: bool) -> None:
    """Refuse an image that cannot be the map's.

    Raises:
        HotswapError: where it is smaller, or its aspect ratio is another.
    """
    sizes = f"a map of {coarse[0]} x {coarse[1]} and an image of {fine[0]} x {fine[1]} (height x width)"
    if fine[0] < coarse[0] or fine[1] < coarse[1]:
        raise HotswapError(f"the image must be no smaller than the map, got {sizes}")
    # A map of n pixels can be of an image that n - 1 or n + 1 pixels would fit better.
    least = [b / (a + 1) for a, b in zip(coarse, fine, strict=True)]
    most = [b / max(a - 1, 0.5) for a, b in zip(coarse, fine, strict=True)]
    if not stretched and max(least) > min(most) * _SLACK:
        factors = " and ".join(f"{b / a:.3g}" for a, b in zip(coarse, fine, strict=True))
        raise HotswapError(
            f"map and image must have one aspect ratio, got {sizes}, factors of {factors}; crop the padding off the "
            "map, or, where the network saw the image stretched, give stretched=True (--stretched)"
        )


def _scale(scale: Any, space: GuideSpace) -> float:
    if isinstance(scale, str) and scale == AUTO:
        return SCALES[space.name]
    if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 <= float(scale) < math.inf:
        raise HotswapError(f'scale must be a number of at least 0, or "{AUTO}", got {scale!r}')
    return float(scale)


def _steps(given: Any, coarse: tuple[int, int], fine: tuple[int, int], *, soft: bool) -> tuple[tuple[int, ...], int]:
    """The footprints, and how many of them follow halvings of the map."""
    if isinstance(given, str) and given == AUTO:
        return footprints.by_factor(coarse, fine, soft=soft)
    listed = tuple(given) if isinstance(given, list) else given
    check_footprint(listed)
    steps = (listed,) if isinstance(listed, int) else listed
    return steps, footprints.halvings(len(steps), coarse, fine)
