"""Two rivals from their equations: joint bilateral upsampling, and a propagation by local affinities."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_FLOOR = 1e-8  # so that a pixel unlike all its neighbours follows the near ones


def joint_bilateral_upsampling(
    scores: Tensor, image: Tensor, align_corners: bool, reach: float, colour: float, radius: int = 2
) -> Tensor:
    """sum_q f(|p - q|) g(|I_p - I_q|) S_q over their sum, f in coarse pixels, g in colours 0..1, both gaussian.

    Args:
        scores: S, [C, h, w].
        image: I, [3, H, W].
        align_corners: where the coarse pixels lie.
        reach: the deviation of f.
        colour: the deviation of g.
        radius: of the window, in coarse pixels.
    """
    rows, columns = (
        _Axis(fine, coarse, align_corners, reach, radius)
        for fine, coarse in zip(image.shape[1:], scores.shape[1:], strict=True)
    )
    guide = image[:, rows.centres][:, :, columns.centres]
    total, weight = scores.new_zeros(len(scores), *image.shape[1:]), scores.new_zeros(image.shape[1:])
    for row, near in rows.neighbours:
        for column, beside in columns.neighbours:
            distance = (image - guide[:, row][:, :, column]).square().sum(0)
            k = ((-distance / (2 * colour**2)).exp() + _FLOOR) * near[:, None] * beside
            total += k * scores[:, row][:, :, column]
            weight += k
    return total / weight


class _Axis:
    """Coarse neighbours along one axis."""

    def __init__(self, fine: int, coarse: int, align_corners: bool, reach: float, radius: int) -> None:
        at, places = torch.arange(fine), torch.arange(coarse)
        if align_corners:
            ratio = (coarse - 1) / max(fine - 1, 1)
            position, centres = at * ratio, places / max(ratio, 1 / fine)
        else:
            ratio = coarse / fine
            position, centres = (at + 0.5) * ratio - 0.5, (places + 0.5) / ratio - 0.5
        self.centres = centres.round().long().clamp(0, fine - 1)
        self.neighbours: list[tuple[Tensor, Tensor]] = []  # for each offset: indices, and weights
        for offset in range(-radius, radius + 1):
            index = position.round().long() + offset
            weight = (-(position - index).square() / (2 * reach**2)).exp()
            inside = (index >= 0) & (index < coarse)
            self.neighbours.append((index.clamp(0, coarse - 1), weight * inside))


def pamr(probabilities: Tensor, image: Tensor, dilations: Sequence[int], steps: int, width: float) -> Tensor:
    """Replace a pixel by the mean of its neighbours some times, by a softmax of -|I_i - I_j| / (width * deviation_i).

    Args:
        probabilities: [C, H, W].
        image: I, [3, H, W].
        dilations: the 8 neighbours at each of these distances.
        steps: how many times.
        width: of the affinity, in local deviations of the image.
    """
    near = torch.stack([each for d in dilations for each in _around(image, d)])  # [N, 3, H, W]
    deviation = near.std(0).clamp_min(1e-3)
    affinity = (-(near - image).abs() / (width * deviation)).mean(1).softmax(0)
    for _ in range(steps):
        around = (each for d in dilations for each in _around(probabilities, d))
        out = torch.zeros_like(probabilities)
        for weight, each in zip(affinity, around, strict=True):
            out.addcmul_(weight, each)
        probabilities = out
    return probabilities


def _around(x: Tensor, distance: int) -> list[Tensor]:
    """The 8 neighbours of each pixel at a distance; those outside are the nearest inside."""
    height, width = x.shape[1:]
    padded = F.pad(x[None], (distance,) * 4, mode="replicate")[0]
    starts = (0, distance, 2 * distance)
    return [
        padded[:, top : top + height, left : left + width]
        for top in starts
        for left in starts
        if (top, left) != (distance, distance)
    ]
