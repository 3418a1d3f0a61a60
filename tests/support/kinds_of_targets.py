"""A network around one target, of any kind."""

import torch
import torch.nn.functional as F
from networks import conv
from swap_by_hand import SCALE
from torch import nn

METHODS = ("fx", "hooks")


class Block(nn.Module):
    """guide -> activation -> pool -> target."""

    def __init__(self, target):
        super().__init__()
        self.guide, self.act, self.pool = conv(3), nn.ReLU(), nn.MaxPool2d(2)
        self.target = target

    def forward(self, x):
        return self.target(self.pool(self.act(self.guide(x))))

    def parts(self, x):
        """The target's input, and the guide at full size."""
        g = self.act(self.guide(x))
        return self.pool(g), g


def resized(guide, size):
    return SCALE * F.interpolate(guide, size, mode="bilinear", align_corners=False)


class Scaled(nn.Module):
    """No convolution, but a parameter of four dimensions."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 8, 3, 3))

    def forward(self, x):
        return x * self.scale.mean()
