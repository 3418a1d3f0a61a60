"""Maps of labels enlarged as scores of one class each, a few classes at a time."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SCORES_AT_A_TIME = 2**26  # that are held, of small or of full-size maps: 256 MiB
Enlarge = Callable[[Tensor], Tensor]


class Ways(NamedTuple):
    """Enlargements of scores, [B, C, h, w]."""

    scores: Enlarge  # to scores
    labels: Enlarge  # to the labels of these, without holding them


def enlarged(labels: Tensor, size: tuple[int, int], ways: Ways, ignore: int | None, corners: bool) -> Tensor:
    """The class whose share is the largest at each pixel, the lowest of those that tie.

    Labels to ignore are no class and follow no image: they stay where the nearest pixel has one.

    Args:
        labels: int64, [B, h, w].
        size: the height and width of the result.
        ways: to that size.
        ignore: the label that is no class; None: all are.
        corners: align_corners.

    Returns:
        int64, [B, *size].
    """
    present = labels.unique()
    classes = present if ignore is None else present[present != ignore]
    batch = labels.shape[0]
    if not len(classes):
        return labels.new_full((batch, *size), int(present[0]))
    if len(classes) == 1:
        out = labels.new_full((batch, *size), int(classes[0]))
    else:
        out = classes[_winners(labels, classes, size, ways)]
    if ignore is None or len(classes) == len(present):
        return out
    return out.masked_fill_(_nearest(labels.eq(ignore), size, corners), ignore)


def _winners(labels: Tensor, classes: Tensor, size: tuple[int, int], ways: Ways) -> Tensor:
    """Places among the classes: at once where the small maps of all can be held, which is much faster."""
    if len(classes) * labels.numel() <= SCORES_AT_A_TIME:
        return ways.labels(_shares(labels, classes))
    batch = labels.shape[0]
    count = max(1, SCORES_AT_A_TIME // (batch * size[0] * size[1]))
    most: Tensor | None = None
    winners = torch.zeros(batch, *size, dtype=torch.int32, device=labels.device)
    for first in range(0, len(classes), count):
        some = classes[first : first + count]
        scores = ways.scores(_shares(labels, some))
        best = scores[:, 0]
        for place in range(len(some)):
            score = scores[:, place]
            if most is None:
                most = best.clone()
                continue
            winners.masked_fill_(score > most, first + place)
            torch.maximum(most, score, out=most)
    return winners


def _shares(labels: Tensor, classes: Tensor) -> Tensor:
    return (labels[:, None] == classes.view(1, -1, 1, 1)).float()


def _nearest(mask: Tensor, size: tuple[int, int], corners: bool) -> Tensor:
    """A mask, its pixels repeated."""
    places = []
    for coarse, fine in zip(mask.shape[1:], size, strict=True):
        pixel = torch.arange(fine, dtype=torch.float64)
        if corners:
            place = (pixel * ((coarse - 1) / max(fine - 1, 1))).round()
        else:
            place = ((pixel + 0.5) * (coarse / fine)).floor()
        places.append(place.long().clamp(0, coarse - 1).to(mask.device))
    return mask[:, places[0]][:, :, places[1]]
