"""Labels of enlarged class scores, without the enlarged scores in memory."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pac_ops import library
from pac_ops.arguments import IntOrPair
from pac_ops.binary import labels_of
from pac_ops.enlargement import Enlargement, Factor, footprints
from pac_ops.functional.enlargement import checked
from pac_ops.functional.steps import guided_steps


def pacresize2d_labels(
    input: Tensor,
    guide: Tensor,
    size: IntOrPair | None = None,
    scale_factor: Factor | None = None,
    align_corners: bool = False,
    recompute_scale_factor: bool = False,
    coarse_guide: Tensor | None = None,
    scale: float | Tensor = 1.0,
    footprint: int | Sequence[int] = 2,
    residual: bool = False,
    halvings: int = 0,
) -> Tensor:
    """The label of every pixel of a guided enlargement of class scores, without the enlarged scores in memory.

    It is `pacresize2d(...).argmax(1)` of the same arguments, called without gradients: the lowest of classes that
    tie. Where a neighbour of any weight has a class's score at -inf, that class is impossible: another one is chosen
    (traced or compiled, scores must be finite). Scores of a single channel are logits of a class against another:
    label 1 where the enlarged one is above 0, else 0. Rows are enlarged a few at a time, so memory beyond input,
    guide and labels does not grow with H; where a call is traced or compiled, all are at once.

    Args:
        input: class scores, [B, C, h, w].
        guide: f, [B, G, H, W], and all others: see `pacresize2d`.
        size: see `pacresize2d`.
        scale_factor: see `pacresize2d`.
        align_corners: see `pacresize2d`.
        recompute_scale_factor: see `pacresize2d`.
        coarse_guide: see `pacresize2d`.
        scale: see `pacresize2d`.
        footprint: see `pacresize2d`.
        residual: see `pacresize2d`.
        halvings: see `pacresize2d`.

    Returns:
        Labels [B, H, W], int64, which take 8 bytes a pixel: `.to(torch.uint8)` holds 256 classes.

    Raises:
        TypeError: where an argument is of the wrong type.
        ValueError: where an argument has the wrong shape or value, a score is nan or +inf, or where a gradient would
            be recorded: labels have none.
    """
    factors = checked(input, guide, size, scale_factor, recompute_scale_factor, coarse_guide)
    for name, x in {"input": input, "guide": guide, "coarse_guide": coarse_guide, "scale": scale}.items():
        if torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad:
            raise ValueError(
                f"{name} must not require a gradient, which labels do not have: call pacresize2d_labels under "
                "torch.no_grad(), or train on the scores of pacresize2d"
            )
    if not input.shape[1]:
        raise ValueError(f"input must have a channel to choose, got {list(input.shape)}")
    where, planned = Enlargement(factors, align_corners, 2), footprints(footprint, halvings)
    coarse = (input.shape[2], input.shape[3])
    steps = guided_steps(guide, coarse_guide, coarse, where, planned, scale, residual, halvings)
    impossible = None
    if library.untraced(input) and not _finite(input):
        input, impossible = _apart(input)
    # A residual's weights may be negative and cancel; what is impossible counts by weights that do not.
    lost = steps._replace(steps=steps.steps[halvings:], halvings=0, residual=False)
    if not library.may_split(input, guide, coarse_guide, scale):
        scores = steps.whole(input)
        return labels_of(scores if impossible is None else _without(scores, lost.whole(impossible)))
    labels = torch.empty((input.shape[0], *guide.shape[2:]), dtype=torch.int64, device=input.device)
    more = itertools.repeat(None) if impossible is None else (band for _, band in lost.bands(impossible))
    for (rows, band), lost_here in zip(steps.bands(input), more, strict=False):
        labels[:, rows] = labels_of(band if lost_here is None else _without(band, lost_here))
    return labels


def _apart(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Finite scores, 0 for each that is -inf, and 1 for these.

    A neighbour whose weight underflows would make nan of -inf, and nan is the largest to argmax.
    """
    impossible = scores == -math.inf
    possible = scores.masked_fill(impossible, 0)
    if not _finite(possible):
        raise ValueError("input must be finite, or -inf where a class is impossible, got nan or +inf in it")
    return possible, impossible.to(scores.dtype)


def _finite(x: Tensor) -> bool:
    """Whether all are; `isfinite` would hold a copy."""
    return not x.numel() or all(math.isfinite(extreme) for extreme in x.aminmax())


def _without(scores: Tensor, impossible: Tensor) -> Tensor:
    """The scores that `_apart` separated, enlarged."""
    return scores.masked_fill(impossible > 0, -math.inf)
