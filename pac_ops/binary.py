"""Class maps of a single channel: logits of a class against another one, whose logits are 0."""

import math

import torch
from torch import Tensor


def two_classes(logits: Tensor) -> Tensor:
    """The two classes of a binary logit, [B, 1, ...] -> [B, 2, ...]: 0 and x.

    Where x is +inf, they are -inf and 0: the first class is the one that is impossible.
    """
    certain = logits == math.inf
    zero = torch.zeros_like(logits)
    return torch.cat([zero.masked_fill(certain, -math.inf), torch.where(certain, zero, logits)], dim=1)


def one_channel(logits: Tensor) -> Tensor:
    """The binary logit of two classes' logits, [B, 2, ...] -> [B, 1, ...]: their difference."""
    return logits[:, 1:] - logits[:, :1]


def labels_of(scores: Tensor) -> Tensor:
    """The label of every pixel, [B, C, ...] -> [B, ...] int64: the highest channel, or whether the only one is > 0.

    The lowest of classes that tie, as `torch.argmax`, which on a CPU takes ten times as long.
    """
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.max(dim=1).indices
