"""Guided enlargement as functions and as a layer, with their argument checks."""

import functools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from pac_ops import backends, library
from pac_ops.area import area_average2d
from pac_ops.arguments import IntOrPair, check_devices, check_image, check_tensor, pair
from pac_ops.binary import labels_of
from pac_ops.dtypes import accumulate_dtype
from pac_ops.enlarging import FOOTPRINTS, Enlargement
from pac_ops.geometry import Pair

Factor = float | Sequence[float]
TAPS_OF_A_BAND = 2**19  # weights of neighbours that are held at a time, where nothing is recorded: 2 MiB stay near


def pacresize2d(
    input: Tensor,
    guide: Tensor,
    size: IntOrPair | None = None,
    scale_factor: Factor | None = None,
    align_corners: bool = False,
    recompute_scale_factor: bool = False,
    coarse_guide: Tensor | None = None,
    scale: float | Tensor = 1.0,
    footprint: int = 2,
) -> Tensor:
    """Enlarge a map bilinearly, each weight multiplied by K between the fine pixel and that coarse neighbour.

    v'_i = sum_j w_ij K(f_i, g_j) v_j / sum_j w_ij K(f_i, g_j) with K = exp(-s^2/2 ||f_i - g_j||^2), where w are the
    weights of `torch.nn.functional.interpolate(mode="bilinear")` for these sizes, f is the guide and g the guide at
    the input's size. So edges fall where the guide's do. With K = 1 (a constant guide, or scale=0) this is
    `F.interpolate`. Neighbours with w = 0 do not count at all; but infinity times a weight of 0 is
    nan, as there.

    Args:
        input: v, [B, C, h, w].
        guide: f, [B, G, H, W], of the output's size; any G, any floating dtype.
        size: (H, W), as in `F.interpolate`; where neither it nor scale_factor is given, it is the guide's.
        scale_factor: as in `F.interpolate`: it gives the size, and says where the coarse pixels lie.
        align_corners: as in `F.interpolate`.
        recompute_scale_factor: as in `F.interpolate`: with it, the sizes say where the coarse pixels lie.
        coarse_guide: g, [B, G, h, w]; by default the guide's area average.
        scale: s, a number or a tensor of one element.
        footprint: 2 for the 2 x 2 neighbours of mode="bilinear"; 4 for 4 x 4 neighbours under a tent of twice the
            width, so that a pixel may follow one further away. With K = 1 that is smoother than `F.interpolate`.

    Returns:
        [B, C, H, W], contiguous, in the input's dtype; K, weights and sums are float32 or wider.

    Raises:
        TypeError: where an argument is of the wrong type.
        ValueError: where an argument has the wrong shape or value.
    """
    coarse_guide, factors = _checked(input, guide, size, scale_factor, recompute_scale_factor, coarse_guide)
    if library.may_split(input, guide, coarse_guide, scale) and _in_bands(guide, coarse_guide, footprint):
        out = input.new_empty(*input.shape[:2], *guide.shape[2:])
        for rows, band in _bands(input, guide, coarse_guide, Enlargement(factors, align_corners, footprint), scale):
            out[:, :, rows] = band
        return out
    distance = resize_distance2d(guide, coarse_guide, factors, align_corners, footprint)
    kernel = resize_kernel2d(distance, (input.shape[2], input.shape[3]), factors, align_corners, scale)
    result: Tensor = library.pacresize2d(input, kernel, factors, align_corners, footprint)
    return result


def pacresize2d_labels(
    input: Tensor,
    guide: Tensor,
    size: IntOrPair | None = None,
    scale_factor: Factor | None = None,
    align_corners: bool = False,
    recompute_scale_factor: bool = False,
    coarse_guide: Tensor | None = None,
    scale: float | Tensor = 1.0,
    footprint: int = 2,
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

    Returns:
        Labels [B, H, W], int64, which take 8 bytes a pixel: `.to(torch.uint8)` holds 256 classes.

    Raises:
        TypeError: where an argument is of the wrong type.
        ValueError: where an argument has the wrong shape or value, a score is nan or +inf, or where a gradient would
            be recorded: labels have none.
    """
    coarse_guide, factors = _checked(input, guide, size, scale_factor, recompute_scale_factor, coarse_guide)
    for name, x in {"input": input, "guide": guide, "coarse_guide": coarse_guide, "scale": scale}.items():
        if torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad:
            raise ValueError(
                f"{name} must not require a gradient, which labels do not have: call pacresize2d_labels under "
                "torch.no_grad(), or train on the scores of pacresize2d"
            )
    if not input.shape[1]:
        raise ValueError(f"input must have a channel to choose, got {list(input.shape)}")
    infinite = library.untraced(input) and not bool(input.isfinite().all())
    seen = _apart(input) if infinite else input
    if not (library.may_split(input, guide, coarse_guide, scale) and _in_bands(guide, coarse_guide, footprint)):
        options: dict[str, Any] = {"align_corners": align_corners, "scale": scale, "footprint": footprint}
        scores = pacresize2d(seen, guide, scale_factor=factors, coarse_guide=coarse_guide, **options)
        return labels_of(_together(scores) if infinite else scores)
    labels = torch.empty((input.shape[0], *guide.shape[2:]), dtype=torch.int64, device=input.device)
    for rows, band in _bands(seen, guide, coarse_guide, Enlargement(factors, align_corners, footprint), scale):
        labels[:, rows] = labels_of(_together(band) if infinite else band)
    return labels


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
        footprint: n, the neighbours along each axis: 2 or 4.

    Returns:
        [B, 1, n, n, H, W], float32 (float64 for a float64 guide).

    Raises:
        TypeError: where an argument is of the wrong type.
        ValueError: where an argument has the wrong shape or value.
    """
    _check_guides(guide, coarse_guide, footprint)
    result: Tensor = library.resize_distance2d(guide, coarse_guide, _factors(scale_factor), align_corners, footprint)
    return result


def resize_kernel2d(
    distance: Tensor,
    input_size: IntOrPair,
    scale_factor: Factor | None = None,
    align_corners: bool = False,
    scale: float | Tensor = 1.0,
) -> Tensor:
    """The weight of each coarse neighbour, w_ij K_ij over their sum: a softmax of log w_ij - s^2/2 ||f_i - g_j||^2.

    Args:
        distance: [B, 1, n, n, H, W], from `resize_distance2d` with the same scale_factor and align_corners.
        input_size: (h, w).
        scale_factor: see `resize_distance2d`.
        align_corners: see `resize_distance2d`.
        scale: s, a number or a tensor of one element.

    Returns:
        [B, 1, n, n, H, W], float32 (float64 for float64 distances); exactly 0 where w_ij = 0.

    Raises:
        TypeError: where an argument is of the wrong type.
        ValueError: where an argument has the wrong shape or value.
    """
    check_tensor("distance", distance)
    if distance.dim() != 6 or distance.shape[2] not in FOOTPRINTS or distance.shape[3] != distance.shape[2]:
        raise ValueError(f"distance must be [B, 1, n, n, H, W] with n 2 or 4, got {list(distance.shape)}")
    coarse, fine = pair("input_size", input_size, 1), (distance.shape[4], distance.shape[5])
    _check_enlarges(coarse, fine)
    where = Enlargement(_factors(scale_factor), align_corners, distance.shape[2])
    return _weights(distance, coarse, where, scale)


def enlarged_size(coarse: Pair, size: IntOrPair | None, scale_factor: Factor | None) -> Pair:
    """The height and width that `F.interpolate` gives a map of this height and width; size or scale_factor is None.

    Raises:
        TypeError: where an argument is of the wrong type.
        ValueError: where a size or a factor is not positive.
    """
    if scale_factor is None:
        assert size is not None  # noqa: S101 (for the type checker)
        return pair("size", size, 1)
    rows, columns = (_enlarged(n, factor) for n, factor in zip(coarse, _pair_of_factors(scale_factor), strict=True))
    return rows, columns


class PacResize2d(nn.Module):
    """`torch.nn.Upsample(mode="bilinear")` steered by a guide; see `pacresize2d`.

    `learn_scale` makes s a parameter, kept as its logarithm `log_scale`.

    Shapes: input [B, C, h, w], guide [B, G, H, W] (, coarse guide [B, G, h, w]) -> [B, C, H, W].

    Raises:
        TypeError: where an argument is of the wrong type.
        ValueError: where a shape or an option does not fit.
    """

    log_scale: nn.Parameter | None

    def __init__(
        self,
        size: IntOrPair | None = None,
        scale_factor: Factor | None = None,
        align_corners: bool = False,
        recompute_scale_factor: bool = False,
        scale: float = 1.0,
        learn_scale: bool = False,
        footprint: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if learn_scale and not scale > 0:
            raise ValueError(f"scale must be > 0 where learn_scale=True: it is kept as its logarithm, got {scale!r}")
        self.size, self.scale_factor, self.align_corners = size, scale_factor, align_corners
        self.recompute_scale_factor, self.footprint, self.scale = recompute_scale_factor, footprint, scale
        logarithm = nn.Parameter(torch.tensor(math.log(scale), device=device, dtype=dtype)) if learn_scale else None
        self.register_parameter("log_scale", logarithm)

    def forward(self, input: Tensor, guide: Tensor, coarse_guide: Tensor | None = None) -> Tensor:
        """Apply the layer; see the class."""
        logarithm = self.log_scale
        wide = None if logarithm is None else logarithm.to(accumulate_dtype(logarithm.dtype))
        scale: float | Tensor = self.scale if wide is None else wide.exp()
        options: dict[str, Any] = {name: getattr(self, name) for name in _OPTIONS}
        return pacresize2d(input, guide, coarse_guide=coarse_guide, scale=scale, **options)

    def extra_repr(self) -> str:
        """The options that are set."""
        shown = [f"{name}={getattr(self, name)}" for name in _OPTIONS if getattr(self, name) not in (None, False)]
        return ", ".join([*shown, f"scale={self.scale}" if self.log_scale is None else "learn_scale=True"])


_LARGEST = 2**16  # pixels a side
_OPTIONS = ("size", "scale_factor", "align_corners", "recompute_scale_factor", "footprint")


# --- parts ------------------------------------------------------------------------------------------------


def _checked(
    input: Tensor,
    guide: Tensor,
    size: IntOrPair | None,
    scale_factor: Factor | None,
    recompute: bool,
    coarse_guide: Tensor | None,
) -> tuple[Tensor, tuple[float, float] | None]:
    """The coarse guide, and the factors where they, rather than the sizes, say where the coarse pixels lie."""
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
    if coarse_guide is None:
        coarse_guide = area_average2d(guide, coarse)
    elif isinstance(coarse_guide, Tensor) and coarse_guide.dim() == 4 and coarse_guide.shape[2:] != input.shape[2:]:
        raise ValueError(
            f"coarse_guide must have the input's height and width {list(coarse)}, got {list(coarse_guide.shape[2:])}"
        )
    return coarse_guide, factors


def _check_guides(guide: Tensor, coarse_guide: Tensor, footprint: int) -> None:
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
    if footprint not in FOOTPRINTS:
        raise ValueError(f"footprint must be one of {', '.join(map(str, FOOTPRINTS))}, got {footprint!r}")


def _in_bands(guide: Tensor, coarse_guide: Tensor, footprint: int) -> bool:
    """Whether there are more pixels than one band has."""
    _check_guides(guide, coarse_guide, footprint)
    return guide.shape[0] * guide.shape[2] * guide.shape[3] * footprint**2 > TAPS_OF_A_BAND


def _apart(scores: Tensor) -> Tensor:
    """Finite scores, then 1 for each that is -inf: [B, C, h, w] -> [B, 2C, h, w].

    A neighbour whose weight underflows would make nan of -inf, and nan is the largest to argmax.
    """
    impossible = scores == -math.inf
    possible = scores.masked_fill(impossible, 0)
    if not bool(possible.isfinite().all()):
        raise ValueError("input must be finite, or -inf where a class is impossible, got nan or +inf in it")
    return torch.cat([possible, impossible.to(scores.dtype)], dim=1)


def _together(enlarged: Tensor) -> Tensor:
    """The scores again, of what `_apart` made."""
    scores, impossible = enlarged.chunk(2, dim=1)
    return scores.masked_fill(impossible > 0, -math.inf)


def _bands(
    input: Tensor, guide: Tensor, coarse_guide: Tensor, where: Enlargement, scale: float | Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the enlargement, from the top down, and what they hold, [B, C, rows, W]."""
    coarse, (b, _, height, width) = (input.shape[2], input.shape[3]), guide.shape
    high = max(1, TAPS_OF_A_BAND // (b * width * where.footprint**2))
    for first in range(0, height, high):
        rows = slice(first, min(first + high, height))
        here = where._replace(band=(rows.start, rows.stop, height))
        distance = backends.load(backends.choose(guide)).resize_distance2d(guide[:, :, rows], coarse_guide, here)
        kernel = _weights(distance, coarse, here, scale)
        yield rows, backends.load(backends.choose(input)).pacresize2d(input, kernel, here)


def _weights(distance: Tensor, coarse: Pair, where: Enlargement, scale: float | Tensor) -> Tensor:
    """See `resize_kernel2d`."""
    distance = distance.to(accumulate_dtype(distance.dtype))
    fine = (distance.shape[4], distance.shape[5])
    weights = where.weights(coarse, fine, distance.device)
    down, across = (w.log().to(distance.dtype).transpose(0, 1) for w in weights)  # [n, H or W]
    half = -0.5 * _scale(scale, distance) ** 2
    logits = distance * half + down.unsqueeze(1).unsqueeze(3) + across.unsqueeze(1)
    return logits.flatten(2, 3).softmax(dim=2).view(distance.shape)


def _output(
    coarse: Pair, guide: Tensor, size: IntOrPair | None, scale_factor: Factor | None, recompute: bool
) -> tuple[Pair, tuple[float, float] | None]:
    """The output's size, and the factors where they, rather than the sizes, say where the coarse pixels lie."""
    factors = _factors(scale_factor)
    if size is not None and factors is not None:
        raise ValueError("give size or scale_factor, not both")
    if factors is None:
        if recompute:
            raise ValueError("recompute_scale_factor must be False without a scale_factor, got True")
        fine = (guide.shape[2], guide.shape[3]) if size is None else pair("size", size, 1)
        return fine, None
    return enlarged_size(coarse, None, factors), None if recompute else factors


def _enlarged(n: Any, factor: float) -> int:
    """The floor of n * factor; of a size that torch.export leaves open, by whole numbers.

    Of a floor it would guard that something remains, and ONNX would round the product to float32.
    """
    left_open = isinstance(n, torch.SymInt) and not torch.compiler.is_dynamo_compiling()
    ratio = _ratio(factor) if left_open and isinstance(factor, float) else None
    enlarged: int = math.floor(n * factor) if ratio is None else n * ratio.numerator // ratio.denominator
    return enlarged


@functools.cache
def _ratio(factor: float) -> Fraction | None:
    """The simplest ratio that enlarges sizes up to `_LARGEST` as the factor itself does."""
    for most in (2**10, 2**20, 2**30):
        a, b = Fraction(factor).limit_denominator(most).as_integer_ratio()
        if all(n * a // b == math.floor(n * factor) for n in range(_LARGEST)):
            return Fraction(a, b)
    return None


def _factors(scale_factor: Factor | None) -> tuple[float, float] | None:
    both = None if scale_factor is None else _pair_of_factors(scale_factor)
    if both is not None and min(both) < 1:
        raise ValueError(f"scale_factor must be at least 1, got {scale_factor!r}")
    return both


def _pair_of_factors(scale_factor: Factor) -> tuple[float, float]:
    number = (int, float, torch.SymInt, torch.SymFloat)  # under torch.export, a ratio of dynamic sizes
    both = (scale_factor, scale_factor) if isinstance(scale_factor, number) else tuple(scale_factor)
    if len(both) != 2 or not all(isinstance(x, number) for x in both):
        raise TypeError(f"scale_factor must be a number or a pair of numbers, got {scale_factor!r}")
    exact: Any = torch.sym_float  # what it makes of a torch.SymInt or SymFloat passes for a float
    return exact(both[0]), exact(both[1])


def _scale(scale: float | Tensor, distance: Tensor) -> float | Tensor:
    if not isinstance(scale, Tensor):
        return scale
    check_tensor("scale", scale)
    check_devices(distance.device, {"scale": scale}, "guide")
    if scale.numel() != 1:
        raise ValueError(f"scale must be a number or a tensor of one element, got {list(scale.shape)}")
    return scale.to(accumulate_dtype(distance.dtype)).reshape(())


def _check_enlarges(coarse: Pair, fine: Pair) -> None:
    if min(coarse) < 1 or fine[0] < coarse[0] or fine[1] < coarse[1]:
        raise ValueError(
            f"the output must be no smaller than the input, which must have a pixel, got {coarse[0]} x {coarse[1]} "
            f"to {fine[0]} x {fine[1]}; F.interpolate(mode='area') makes maps smaller"
        )
