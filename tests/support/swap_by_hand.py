"""Swaps, and what they should compute, spelt out."""

import torch
import torch.nn.functional as F

import hotswap
from pac_ops import PacConv2d

SCALE = 0.8  # large: an error in the guide or in K must show


def swap(net, targets="target", guide="guide", **kwargs):
    kwargs.setdefault("example_inputs", torch.rand(1, 3, 12, 10))
    return hotswap.convert(net.eval(), targets, guide, guide_scale=SCALE, **kwargs)


def pac(convolution, x, guide):
    """What the swap should compute, from the layer that tests/pac_ops holds against the oracle."""
    layer = PacConv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        convolution.stride,
        convolution.padding,
        convolution.dilation,
        convolution.groups,
        convolution.bias is not None,
        convolution.padding_mode,
    )
    layer.load_state_dict({"weight": convolution.weight, "bias": convolution.bias})
    if guide.shape[2:] != x.shape[2:]:
        guide = F.interpolate(guide, x.shape[2:], mode="bilinear", align_corners=False)
    return layer(x, SCALE * guide)


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)  # float32 sums of 72 products, in another order


def plain_expected(net, x):
    g = F.relu(net.guide(F.relu(net.stem(x))))
    return net.head(F.relu(pac(net.target, net.pool(g), g)))
