"""The second file of every random program: helpers that live elsewhere."""

PARTS = """\
import torch
import torch.nn.functional as F
from torch import nn


def resize_to(x, size, mode="bilinear"):
    return F.interpolate(x, size=size, mode=mode, align_corners=False)  # p1


def match(x, like):
    if x.shape[-2:] != like.shape[-2:]:
        x = F.interpolate(x, size=like.shape[-2:], mode="bilinear")  # p2
    return x


def to_larger(x, y):
    size = [max(a, b) for a, b in zip(x.shape[2:], y.shape[2:])]
    if list(x.shape[2:]) != size:
        x = F.interpolate(x, size, mode="bilinear", align_corners=True)  # p3
    if list(y.shape[2:]) != size:
        y = F.interpolate(y, size, mode="bilinear", align_corners=True)  # p4
    return x, y


def at_size(maps, like):
    found = []
    for i_1, x in enumerate(maps):
        if x.shape[-2:] != like.shape[-2:]:
            x = resize_to(x, like.shape[2:])  # p5
        found.append(x)
    return found


def double(x):
    return F.interpolate(x, scale_factor=2, mode="bilinear")  # p6


def twice(x):
    return double(x)  # p7


def enlarged(x, factor=2, *, corners=False):
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=corners)  # p8


def bilinear(channels, factor=2):
    size = 2 * factor
    up = nn.ConvTranspose2d(channels, channels, size, stride=factor, padding=factor // 2, groups=channels, bias=False)
    line = 1 - (torch.arange(size) - (size - 1) / 2).abs() / factor
    with torch.no_grad():
        up.weight.copy_((line[:, None] * line).expand_as(up.weight))
    up.weight.requires_grad_(False)
    return up


class Own(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, 3, 3) * 0.3)

    def forward(self, input):
        return F.conv2d(input, self.weight * 1.1, padding=1)


class OwnWithParts(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.before = nn.BatchNorm2d(cin)
        self.kernel = nn.Parameter(torch.randn(cout, cin, 3, 3) * 0.3)

    def forward(self, input):
        return F.conv2d(self.before(input), self.kernel, None, padding=1)


class Standardised(nn.Conv2d):
    def forward(self, input):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Padded(nn.Conv2d):
    def forward(self, input):
        return self._conv_forward(F.pad(input, (1, 1, 1, 1)), self.weight, self.bias)
"""
