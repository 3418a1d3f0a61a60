"""A short chain of convolutions under the published names."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn


class Convolutions(nn.Module):
    """`conv1`, `conv2`, ... of 5 x 5 that keep the size, with a ReLU between them and none after the last.

    [B, widths[0], H, W] -> [B, widths[-1], H, W].
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        for index, (channels, outputs) in enumerate(pairwise(widths), start=1):
            self.add_module(f"conv{index}", nn.Conv2d(channels, outputs, 5, padding=2))

    def forward(self, x: Tensor) -> Tensor:
        """Apply all of them; see the class."""
        for index, conv in enumerate(self.children()):
            x = conv(F.relu(x) if index else x)
        return x
