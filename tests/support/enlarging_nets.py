"""Networks that enlarge, and every enlargement of them guided."""

import torch
import torch.nn.functional as F
from torch import nn

import hotswap


def bilinear(channels, stride, size, **options):
    """A transposed convolution fixed to bilinear weights."""
    options = {"padding": (size - stride) // 2, "groups": channels} | options
    layer = nn.ConvTranspose2d(channels, channels, size, stride, **options).requires_grad_(False)
    line = 1 - (torch.arange(size) - (size - 1) / 2).abs() / stride
    layer.weight.data.zero_()
    for channel in range(channels):
        layer.weight.data[channel, 0 if layer.groups > 1 else channel] = line[:, None] * line
    return layer


class Block(nn.Module):
    """Two calls of F.interpolate in evaluation, three in training, the extra one first."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, like):
        if self.training:
            F.interpolate(x, scale_factor=3, mode="bilinear")
        x = F.interpolate(x, size=like.shape[-2:], mode="bilinear")
        return F.interpolate(self.conv(x), None, 2.0, "bilinear", True)


class Net(nn.Module):
    """Every kind of enlargement; `block` is called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.block = Block()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.near = nn.Upsample(scale_factor=8)
        self.transposed = bilinear(4, 2, 4)

    def forward(self, image):
        a = F.relu(self.a(image))
        b = F.relu_(self.b(a))
        c = self.c(b)
        fine = self.block(self.block(c, b), a)  # of the image's size
        return {"fine": fine, "b": self.transposed(self.up(b)), "near": self.near(c), "small": F.avg_pool2d(fine, 2)}


IMAGE = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
EVERY = ["resize_*", "transposed"]
ALIASES = ["resize_1", "resize_2", "resize_3", "resize_4", "resize_5"]


def convert(net, targets=EVERY, guide="input", **options):
    return hotswap.convert(net, targets, guide, **{"guide_scale": 2.0, "example_inputs": IMAGE} | options)


def run(net, image=IMAGE):
    with torch.no_grad():
        return net(image)


def assert_same(a, b, **tolerance):
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance or {"rtol": 0, "atol": 2e-6})
