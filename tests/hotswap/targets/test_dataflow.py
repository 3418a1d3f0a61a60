"""What is known of an enlargement behind PyTorch's operators: what mixes positions, and what does not."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hotswap

IMAGE = torch.empty(1, 3, 64, 64, device="meta")


def up(x, factor=4, mode="bilinear"):
    return F.interpolate(x, scale_factor=factor, mode=mode)


@dataclass
class Output:
    main: torch.Tensor
    others: list


class Net(nn.Module):
    """Six scores at a quarter of the size, and layers that may follow."""

    def __init__(self, forward):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 6, 1)
        self.pointwise, self.spatial = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.linear, self.positions = nn.Linear(6, 4), nn.Linear(6 * 64 * 64, 3)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.norms = nn.Sequential(
            nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.InstanceNorm2d(6), nn.PReLU(6), nn.ReLU(inplace=True)
        )
        self.layer_norm = nn.LayerNorm(6)
        self._forward = forward

    def coarse(self, x):
        return self.head(self.stem(x))

    def forward(self, x):
        return self._forward(self, x)


def tokens(y):
    return y.flatten(2).transpose(1, 2)


def windows(y):
    return y.view(1, 6, 8, 8, 8, 8).permute(0, 2, 4, 3, 5, 1).reshape(64, 64, 6)


def written(y, size):
    canvas = torch.zeros(1, 7, size, size)
    canvas[:, 1:, :64, :64] = y
    return canvas


def half_written(net, y):
    canvas = torch.zeros(1, 12, 64, 64)
    canvas[:, :6], canvas[:, 6:] = y, net.spatial(y)
    return canvas


def over_a_finer_map(net, y):
    canvas = net.image.repeat(1, 3, 1, 1)
    canvas[:, :6] = y
    return canvas


POINTWISE = {
    "1x1 convolution": lambda net, y: net.pointwise(y),
    "norms": lambda net, y: net.norms(y),
    "softmax, argmax": lambda net, y: y.softmax(1).argmax(1),
    "channels last": lambda net, y: net.linear(net.layer_norm(y.permute(0, 2, 3, 1))).argmax(-1),
    "tokens": lambda net, y: net.linear(tokens(y)).transpose(1, 2).reshape(1, 4, 64, 64),
    "windows": lambda net, y: (
        net.linear(windows(y)).view(1, 8, 8, 8, 8, 4).permute(0, 5, 1, 3, 2, 4).reshape(1, 4, 64, 64)
    ),
    "crop": lambda net, y: y[:, :, 1:-1, 2:],
    "pad": lambda net, y: F.pad(F.pad(y, (1, 1, 2, 2), mode="reflect")[:, :, 2:-2], (0, 3)),
    "crop of a pad": lambda net, y: F.pad(y, (1, 1, 2, 2))[:, :, 2:-2, 1:-1] + y,
    "channels": lambda net, y: torch.cat([y[:, [0, 2]], *y.split(3, 1)], 1),
    "unbind and stack": lambda net, y: torch.stack([part.relu() for part in y.unbind(1)], 1),
    "constants": lambda net, y: torch.where(y > 0, y, torch.zeros_like(y)) * torch.arange(64.0),
    "in place": lambda net, y: y.add_(1).clamp_(0, 1).mul_(2),
    "sums over channels": lambda net, y: (y.sum(1), y.var(1), y.logsumexp(1), F.normalize(y, dim=1), y.cumsum(1)),
    "top classes": lambda net, y: y.gather(1, y.topk(2, 1).indices),
    "a palette": lambda net, y: torch.ones(6, 3)[y.argmax(1)],
    "an embedding": lambda net, y: F.embedding(y.argmax(1), torch.ones(6, 3)),
    "noise": lambda net, y: F.gumbel_softmax(F.hardswish(y), dim=1),
    "one-hot": lambda net, y: F.one_hot(y.argmax(1), 6),
    "queries": lambda net, y: torch.einsum("bc,bchw->bhw", net.pointwise.weight[:1, :, 0, 0], y),
    "gated by itself": lambda net, y: y * net.pointwise(y).sigmoid(),
    "written into a canvas": lambda net, y: written(y, 64),
    "a dataclass": lambda net, y: Output(y[0], [{"mask": y > 0}]),
    "a loss beside them": lambda net, y: (F.cross_entropy(y, y.argmax(1)), y),
    "a pixel shuffle": lambda net, y: F.pixel_shuffle(torch.cat([y, y[:, :2]], 1), 2),
}
MIXING = {
    "3x3 convolution": (lambda net, y: net.spatial(y), "spatial"),
    "one of two outputs": (lambda net, y: {"scores": y, "more": net.spatial(y)}, "spatial"),
    "written half": (half_written, "spatial"),
    "pooling": (lambda net, y: F.max_pool2d(y, 2), "max_pool2d in the network"),
    "a smaller size": (lambda net, y: F.interpolate(y, size=32), "F.interpolate 1 in the network"),
    "a gate of all positions": (lambda net, y: y * y.mean((2, 3), keepdim=True).sigmoid(), "mean in the network"),
    "nothing but a loss": (lambda net, y: F.cross_entropy(y, y.argmax(1)), "cross_entropy in the network"),
    "attention": (lambda net, y: net.attention(*[tokens(y)] * 3)[0], "multi_head_attention_forward in attention"),
    "attention in windows": (
        lambda net, y: (windows(y) @ windows(y).transpose(1, 2)).softmax(-1) @ windows(y),
        "softmax in the network",
    ),
    "a linear layer over positions": (lambda net, y: net.positions(y.flatten(1)), "positions"),
    "every second": (lambda net, y: y[..., ::2], "getitem in the network"),
    "differences of neighbours": (lambda net, y: y[:, :, 1:] - y[:, :, :-1], "sub in the network"),
    "a flip": (lambda net, y: y.flip(3), "flip in the network"),
    "a mirror image added": (lambda net, y: y + y.transpose(2, 3), "add in the network"),
    "warping": (
        lambda net, y: F.grid_sample(y, torch.zeros(1, 64, 64, 2), align_corners=False),
        "grid_sample in the network",
    ),
    "weights from features": (
        lambda net, y: torch.einsum("bc,bchw->bhw", net.spatial(y).mean((2, 3)), y),
        "spatial",
    ),
    "the largest of all": (lambda net, y: y / y.max(), "max in the network"),
}
UNKNOWN = {
    "written into a larger canvas": (lambda net, y: written(y, 80), "setitem in the network follows"),
    "a branch": (
        lambda net, y: torch.cond(torch.ones(()) > 0, lambda z: z + 1, lambda z: z - 1, (y,)),
        "cond in the network follows",
    ),
    "written over a finer map": (over_a_finer_map, "setitem in the network follows"),
    "places of some values": (lambda net, y: torch.where(y > 0), "where in the network follows"),
    "unshuffled pixels": (lambda net, y: F.pixel_unshuffle(y, 2), "pixel_unshuffle in the network follows"),
    "no output": (lambda net, y: net.unused, "no output is seen to depend on it"),
    "an operator of others": (
        lambda net, y: torch.ops.torchvision.deform_conv2d(
            y, net.pointwise.weight, torch.zeros(1, 2, 64, 64), torch.ones(1, 1, 64, 64), torch.zeros(6),
            1, 1, 0, 0, 1, 1, 1, 1, True,
        ),
        "deform_conv2d in the network follows",
    ),
}  # fmt: skip


def sites(forward):
    infos = hotswap.inspect(Net(forward).eval(), IMAGE).resizes
    return [(round(info.factor, 1), info.place) for info in infos if info.factor > 1]


@pytest.mark.parametrize("behind", POINTWISE)
def test_scores_stay_scores(behind):
    assert sites(lambda net, x: POINTWISE[behind](net, up(net.coarse(x)))) == [(4, "scores")]


@pytest.mark.parametrize("behind", MIXING)
def test_what_several_positions_go_into_makes_features(behind):
    after, by = MIXING[behind]
    assert sites(lambda net, x: after(net, up(net.coarse(x)))) == [(4, f"features: {by} follows")]


@pytest.mark.parametrize("behind", UNKNOWN)
def test_what_cannot_be_followed_is_said(behind):
    after, said = UNKNOWN[behind]

    def forward(net, x):
        net.unused, net.image = net.coarse(x), x
        return after(net, up(net.coarse(x)))

    assert sites(forward) == [(4, f"unknown: {said}")]


ROWS = {
    "a ladder": (lambda net, x: up(up(net.coarse(x), 2).sigmoid() * 2, 2), [(4, ""), (4, "")]),
    "with an output in between": (lambda net, x: (y := up(net.coarse(x), 2), up(y, 2)), [(4, ""), (4, "")]),
    "by several kinds": (
        lambda net, x: torch._C._nn.upsample_bilinear2d(up(net.coarse(x), 2), (64, 64), False),
        [(4, "")],
    ),
    "features between": (lambda net, x: up(net.spatial(up(net.coarse(x), 2)), 2), [(2, "spatial follows"), (2, "")]),
    "a finer map between": (
        lambda net, x: up(up(F.avg_pool2d(net.coarse(x), 4), 4) + net.coarse(x), 4),
        [(4, "add in the network"), (4, "")],
    ),
    "the image": (lambda net, x: up(net.coarse(x)) + x[:, :1], [(4, "add in the network")]),
    "a map as coarse": (lambda net, x: up(net.coarse(x)) + up(net.pointwise(net.coarse(x))), [(4, ""), (4, "")]),
    "a coarser map": (
        lambda net, x: torch.cat([up(net.coarse(x)), up(F.avg_pool2d(net.coarse(x), 2), 8)], 1),
        [(4, ""), (8, "cat in the network")],
    ),
    "one number for each image": (lambda net, x: up(net.coarse(x)) * x.mean((2, 3), keepdim=True)[:, :1], [(4, "")]),
    "align_corners": (
        lambda net, x: F.interpolate(net.coarse(x), (61, 61), mode="bilinear", align_corners=True),
        [(4, "")],
    ),
    "odd sizes": (lambda net, x: F.interpolate(net.coarse(x), (63, 63), mode="bilinear"), [(3.9, "")]),
}


@pytest.mark.parametrize("row", ROWS)
def test_factors_count_from_the_last_finer_map(row):
    forward, expected = ROWS[row]
    listed = [(factor, place.partition(": ")[2]) for factor, place in sites(forward)]
    assert listed == expected


def test_a_module_that_is_called_twice_has_the_worse_place():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 4, 3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
            self.up = nn.Upsample(scale_factor=2, mode="bilinear")

        def forward(self, x):
            return self.up(self.conv(self.up(self.stem(x))))

    (info,) = hotswap.inspect(Shared(), IMAGE).resizes
    assert (info.factor, info.place, info.automatic) == (2, "features: conv follows", False)
