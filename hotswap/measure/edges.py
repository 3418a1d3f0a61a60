"""Pixels near the edges of a label map."""

import torch
import torch.nn.functional as F
from torch import Tensor


def near_edges(labels: Tensor, distance: int) -> Tensor:
    """Pixels within a distance of a change of label: [B, H, W] bool. Those beside a change are at distance 1.

    Distances are the larger of those along the two axes. What is ignored counts as a label, because data sets mark
    edges by it.
    """
    edges = torch.zeros_like(labels, dtype=torch.bool)
    across, down = labels[..., 1:] != labels[..., :-1], labels[..., 1:, :] != labels[..., :-1, :]
    edges[..., 1:] |= across
    edges[..., :-1] |= across
    edges[..., 1:, :] |= down
    edges[..., :-1, :] |= down
    return within(edges, distance)


def within(places: Tensor, distance: int) -> Tensor:
    """Pixels within a distance of marked ones, [B, H, W] bool; these themselves are at distance 1."""
    window = 2 * distance - 1
    return F.max_pool2d(places[:, None].float(), window, stride=1, padding=distance - 1)[:, 0] > 0
