"""Guided enlargement as functions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pac_ops import formats, library, whole
from pac_ops.area import area_average2d
from pac_ops.arguments import IntOrPair, check_devices, check_image, check_tensor, pair
from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlargement import FOOTPRINTS, Enlargement, Factor, enlarged_size, factors_of, footprints
from pac_ops.functional.steps import band_height, guided_steps
from pac_ops.functional.weights import enlarged_rows, guided_weights
from pac_ops.geometry import Pair
from pac_ops.settled import settled


def pacresize2d(
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
    bounded: bool = False,
) -> Tensor:
    """Enlarge a map bilinearly, each weight multiplied by K between the fine pixel and that coarse neighbour.

    v'_i = sum_j w_ij K(f_i, g_j) v_j / sum_j w_ij K(f_i, g_j) with K = exp(-s^2/2 ||f_i - g_j||^2), where w are the
    weights of `torch.nn.functional.interpolate(mode="bilinear")` for these sizes, f is the guide and g the guide at
    the input's size. So edges fall where the guide's do. With K = 1 (a constant guide, or scale=0) this is
    `F.interpolate`. Neighbours with w = 0 do not count at all; but infinity times a weight of 0 is
    nan, as there.

    Neighbours further away, of a wider footprint, help the output to follow the guide, but their w smooth the map
    wherever the guide is flat. `residual` takes that back: v'_i + bilinear(v)_i - sum_j w_ij v_j / sum_j w_ij, which
    is `F.interpolate` again with K = 1, and as sharp as it in flat places; beside an edge of the guide it may
    overshoot. With footprint 2 the two are one.

    Several footprints are as many steps, so that a pixel follows what was sharpened before it. All but the last put a
    pixel between each two of the map, and the last one leads from these to the output, each with the guide at the
    places of its pixels. With K = 1 and residual that is `F.interpolate` again.

    Edges of a map may be soft over more of its pixels than the steps of a small factor reach. `halvings` has them
    begin earlier: the map is halved so many times, the first steps lead back to it, and what each halving lost is
    added behind its step, as in a Laplacian pyramid (Burt and Adelson, 1983).

    Args:
        input: v, [B, C, h, w].
        guide: f, [B, G, H, W], of the output's size; any G, any floating dtype.
        size: (H, W), as in `F.interpolate`; where neither it nor scale_factor is given, it is the guide's.
        scale_factor: as in `F.interpolate`: it gives the size, and says where the coarse pixels lie.
        align_corners: as in `F.interpolate`.
        recompute_scale_factor: as in `F.interpolate`: with it, the sizes say where the coarse pixels lie.
        coarse_guide: g, [B, G, h, w]; by default the guide's area average, or, of several steps, its mean around the
            place of each pixel of the input.
        scale: s, a number or a tensor of one element.
        footprint: n, for n x n neighbours: 2, those of mode="bilinear"; 4, 6 or 8 under a tent of n/2 times the
            width, so that a pixel may follow one further away. Or one for each step, the coarsest first: (6, 4, 2)
            for a factor of 8.
        residual: what the guide changes alone is added to mode="bilinear"; without it a footprint wider than 2 is,
            with K = 1, smoother than `F.interpolate`. Weights may then be negative, so the input must be finite.
        halvings: how often the map is halved before the first step, fewer times than there are footprints.
        bounded: keep every pixel within the range of its neighbours in mode="bilinear", so that a residual does not
            overshoot: for depth, flow and mattes, whose values count, rather than scores of classes.

    Returns:
        [B, C, H, W] in the input's dtype, channels-last where it is; K, weights and sums are float32 or wider.
    """
    options = (size, scale_factor, recompute_scale_factor, align_corners, footprint, halvings)
    where, planned, step = settled(_planned, (input, guide, coarse_guide), *options)
    coarse = (input.shape[2], input.shape[3])
    if step is not None and not bounded and library.may_split(input, guide, coarse_guide, scale):
        if coarse_guide is None:
            coarse_guide = area_average2d(guide, coarse)
        if band_height(input, guide, planned) >= guide.shape[2]:  # at once, as small maps are
            return formats.like(enlarged_rows(input, guide, coarse_guide, coarse, step, scale, residual), input)
    if whole.is_kept(*coarse, *guide.shape[2:]):
        return whole.enlarged(input, guide, coarse_guide, where, planned, scale, residual, halvings, bounded)
    steps = guided_steps(guide, coarse_guide, coarse, where, planned, scale, residual, halvings, bounded)
    if not library.may_split(input, guide, coarse_guide, scale):
        out = steps.whole(input, recorded=True)
        kept = library.untraced(input) and formats.channels_last(input)
        return out.contiguous(memory_format=torch.channels_last) if kept else out
    if steps.at_once(input):
        return formats.like(steps.whole(input, recorded=False), input)
    made: Tensor | None = None
    size = (*input.shape[:2], *guide.shape[2:])
    for rows, band in steps.bands(input):
        if rows == slice(0, guide.shape[2]):
            return formats.like(band, input)
        made = formats.empty(size, input, input) if made is None else made
        made[:, :, rows] = band
    return formats.empty(size, input, input) if made is None else made


def _planned(
    input: Tensor,
    guide: Tensor,
    coarse_guide: Tensor | None,
    size: IntOrPair | None,
    scale_factor: Factor | None,
    recompute: bool,
    align_corners: bool,
    footprint: int | Sequence[int],
    halvings: int,
) -> tuple[Enlargement, tuple[int, ...], Enlargement | None]:
    """The enlargement by mode="bilinear", a footprint for each step, and the step, if it is one."""
    factors = checked(input, guide, size, scale_factor, recompute, coarse_guide)
    where, each = Enlargement(factors, align_corners, 2), footprints(footprint, halvings)
    first, *others = where.steps(each)
    return where, each, None if others else first


def resize_distance2d(
    guide: Tensor,
    coarse_guide: Tensor,
    scale_factor: Factor | None = None,
    align_corners: bool = False,
    footprint: int = 2,
) -> Tensor:
    """||f_i - g_j||^2 between each fine pixel and its coarse neighbours, those without weight included.

    Args:
        guide: f, [B, G, H, W], any floating dtype, any G.
        coarse_guide: g, [B, G, h, w], no larger, of the guide's dtype or, for a half-precision guide, float32.
        scale_factor: as in `F.interpolate`, where it says where the coarse pixels lie; else None.
        align_corners: as in `F.interpolate`.
        footprint: n, the neighbours along each axis: 2, 4, 6 or 8.

    Returns:
        [B, 1, n, n, H, W], float32 (float64 for a float64 guide).
    """
    _check_guides(guide, coarse_guide)
    (footprint,) = footprints([footprint])
    result: Tensor = library.resize_distance2d(
        guide, coarse_guide, *Enlargement(factors_of(scale_factor), align_corners, footprint).options
    )
    return result


def resize_kernel2d(
    distance: Tensor,
    input_size: IntOrPair,
    scale_factor: Factor | None = None,
    align_corners: bool = False,
    scale: float | Tensor = 1.0,
    residual: bool = False,
) -> Tensor:
    """The weight of each coarse neighbour, w_ij K_ij over their sum: a softmax of log w_ij - s^2/2 ||f_i - g_j||^2.

    Args:
        distance: [B, 1, n, n, H, W], from `resize_distance2d` with the same scale_factor and align_corners.
        input_size: (h, w).
        scale_factor: see `resize_distance2d`.
        align_corners: see `resize_distance2d`.
        scale: s, a number or a tensor of one element.
        residual: see `pacresize2d`: to these weights those of mode="bilinear" are added, and w_ij over their sum is
            taken off.

    Returns:
        [B, 1, n, n, H, W], float32 (float64 for float64 distances); exactly 0 where w_ij = 0.
    """
    check_tensor("distance", distance)
    if distance.dim() != 6 or distance.shape[2] not in FOOTPRINTS or distance.shape[3] != distance.shape[2]:
        sizes = ", ".join(map(str, FOOTPRINTS))
        raise ValueError(f"distance must be [B, 1, n, n, H, W] with n one of {sizes}, got {list(distance.shape)}")
    coarse, fine = pair("input_size", input_size, 1), (distance.shape[4], distance.shape[5])
    _check_enlarges(coarse, fine)
    where = Enlargement(factors_of(scale_factor), align_corners, distance.shape[2])
    return guided_weights(distance, coarse, where, scale, residual)


def checked(
    input: Tensor,
    guide: Tensor,
    size: IntOrPair | None,
    scale_factor: Factor | None,
    recompute: bool,
    coarse_guide: Tensor | None,
) -> tuple[float, float] | None:
    """Check the arguments; the factors where they, rather than the sizes, say where the coarse pixels lie."""
    check_image("input", input)
    check_image("guide", guide)
    coarse = (input.shape[2], input.shape[3])
    fine, factors = _output(coarse, guide, size, scale_factor, recompute)
    if guide.shape[0] != input.shape[0] or (guide.shape[2], guide.shape[3]) != fine:
        raise ValueError(
            f"guide must be [B, G, H, W] with the input's batch and the output's height and width, "
            f"[{input.shape[0]}, G, {fine[0]}, {fine[1]}], got {list(guide.shape)}"
        )
    check_devices(input.device, {"guide": guide})
    _check_enlarges(coarse, fine)
    if coarse_guide is None:
        return factors
    if isinstance(coarse_guide, Tensor) and coarse_guide.dim() == 4 and coarse_guide.shape[2:] != input.shape[2:]:
        raise ValueError(
            f"coarse_guide must have the input's height and width {list(coarse)}, got {list(coarse_guide.shape[2:])}"
        )
    _check_guides(guide, coarse_guide)
    return factors


def _check_guides(guide: Tensor, coarse_guide: Tensor) -> None:
    check_image("guide", guide)
    check_image("coarse_guide", coarse_guide)
    check_devices(guide.device, {"coarse_guide": coarse_guide}, "guide")
    if coarse_guide.dtype not in (allowed := {guide.dtype: None, accumulate_dtype(guide.dtype): None}):
        dtypes = " or ".join(map(str, allowed))
        raise TypeError(f"coarse_guide must have the guide's dtype, {dtypes}, got {coarse_guide.dtype}")
    if coarse_guide.shape[:2] != guide.shape[:2]:
        raise ValueError(
            f"coarse_guide must have the guide's batch and channels {list(guide.shape[:2])}, "
            f"got {list(coarse_guide.shape[:2])}"
        )
    _check_enlarges((coarse_guide.shape[2], coarse_guide.shape[3]), (guide.shape[2], guide.shape[3]))


def _output(
    coarse: Pair, guide: Tensor, size: IntOrPair | None, scale_factor: Factor | None, recompute: bool
) -> tuple[Pair, tuple[float, float] | None]:
    """The output's size, and the factors where they, rather than the sizes, say where the coarse pixels lie."""
    factors = factors_of(scale_factor)
    if size is not None and factors is not None:
        raise ValueError("give size or scale_factor, not both")
    if factors is None:
        if recompute:
            raise ValueError("recompute_scale_factor must be False without a scale_factor, got True")
        fine = (guide.shape[2], guide.shape[3]) if size is None else pair("size", size, 1)
        return fine, None
    return enlarged_size(coarse, None, factors), None if recompute else factors


def _check_enlarges(coarse: Pair, fine: Pair) -> None:
    if min(coarse) < 1 or fine[0] < coarse[0] or fine[1] < coarse[1]:
        raise ValueError(
            f"the output must be no smaller than the input, which must have a pixel, got {coarse[0]} x {coarse[1]} "
            f"to {fine[0]} x {fine[1]}; F.interpolate(mode='area') makes maps smaller"
        )
