"""Small networks, one for each thing that bites."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.segmentation.lraspp import LRASPP
from torchvision.models.vgg import VGG, cfgs, make_layers

from hotswap.surgery import graph
from hotswap.surgery.tracing import UntraceableError


def enlarge_by_hooks(monkeypatch):
    """Have hooks carry out all enlargements, as where the code cannot be traced."""
    prepare = graph.prepare

    def convolutions_only(model, plan, *further):
        if plan.resizes:
            raise UntraceableError("not in this test")
        return prepare(model, plan, *further)

    monkeypatch.setattr(graph, "prepare", convolutions_only)


def conv(c_in=8, c_out=8, k=3, **kwargs):
    kwargs.setdefault("padding", k // 2)
    return nn.Conv2d(c_in, c_out, k, **kwargs)


def thin_vgg11():
    """The convolutions of torchvision's VGG-11, by the same names, with few channels."""
    return make_layers([8, "M", 8, "M", 8, 8, "M", 8, 8, "M", 8, 8, "M"])


def thin_vgg16(*, weights=None):
    """torchvision's VGG-16 with an eighth of the channels, in place of 138 million weights that take seconds to fill."""
    features = make_layers([width if width == "M" else width // 8 for width in cfgs["D"]])
    with torch.device("meta"):
        network = VGG(features)
    network.avgpool, network.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(64, 10)
    return network


def thin_lraspp(*, weights=None):
    """torchvision's LRASPP behind four layers, in place of the 67 that tracing and planning go through."""
    return LRASPP(TwoMaps(), 4, 8, num_classes=21, inter_channels=8)


class TwoMaps(nn.Module):
    """At an eighth of the image and at a sixteenth."""

    def __init__(self):
        super().__init__()
        steps = ((3, 4), (4, 4), (4, 4), (4, 8))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.Hardswish()) for a, b in steps
        )

    def forward(self, x):
        for layer in self.layers[:3]:
            x = layer(x)
        return {"low": x, "high": self.layers[3](x)}


class Plain(nn.Module):
    """guide -> relu -> pool -> target, nothing special. `target_options` go to the target."""

    def __init__(self, **target_options):
        super().__init__()
        self.stem = conv(3)
        self.guide = conv()
        self.pool = nn.MaxPool2d(2)
        self.target = conv(**target_options)
        self.head = nn.Conv2d(self.target.out_channels, 2, 1)

    def forward(self, x):
        g = F.relu(self.guide(F.relu(self.stem(x))))
        return self.head(F.relu(self.target(self.pool(g))))


class InPlaceAfterGuide(Plain):
    """The activation that is the guide is overwritten later, by a function and by an operator."""

    def forward(self, x):
        g = F.relu(self.guide(F.relu(self.stem(x))), inplace=True)
        g *= 2
        return self.head(F.relu(self.target(torch.tanh_(g))))


class InPlaceResidual(nn.Module):
    """A residual sum and an activation in place, as ResNet writes them."""

    def __init__(self):
        super().__init__()
        self.stem, self.guide, self.target = conv(3), conv(), conv()
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.stem(x)
        out = self.norm(self.guide(x))
        out += x
        out = self.relu(out)
        y = self.target(out)
        y += out
        return self.relu(y)


class SharedHead(nn.Module):
    """One head, called on two sizes: each call has its own K."""

    def __init__(self):
        super().__init__()
        self.stem, self.guide, self.head = conv(3), conv(), conv()
        self.pool = nn.AvgPool2d(2)

    def forward(self, x):
        g = F.relu(self.guide(self.stem(x)))
        return self.head(g), self.head(self.pool(g))


class Siamese(nn.Module):
    """Guide and target each called twice: the pairs follow the data."""

    def __init__(self):
        super().__init__()
        self.guide, self.target = conv(3), conv()

    def forward(self, x, y):
        a, b = F.relu(self.guide(x)), F.relu(self.guide(y))
        return self.target(a) - self.target(b)


class TiedBranches(nn.Module):
    """One convolution registered, and called, under two parents."""

    def __init__(self):
        super().__init__()
        self.guide = conv(3)
        shared = conv()
        self.left = nn.Sequential(OrderedDict(c=shared))
        self.right = nn.Sequential(OrderedDict(c=shared))

    def forward(self, x):
        g = F.relu(self.guide(x))
        return self.left(g) + self.right(g.flip(-1))


class ModeDependent(nn.Module):
    """Functional dropout and a branch on self.training."""

    def __init__(self):
        super().__init__()
        self.guide, self.target = conv(3), conv()
        self.aux = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        g = F.relu(self.guide(x))
        y = F.dropout(self.target(g), 0.5, self.training)
        if self.training:
            return {"out": y, "aux": self.aux(g)}
        return {"out": y}


class Optional(nn.Module):
    """Arguments with defaults that steer the forward."""

    def __init__(self):
        super().__init__()
        self.guide, self.target = conv(3), conv()

    def forward(self, x, mask=None, *, scale=1.0, **unused):
        y = self.target(F.relu(self.guide(x)))
        return y * scale if mask is None else y * mask


class Methods(nn.Module):
    """forward is a thin wrapper, as in timm, with control flow that no tracer can follow."""

    def __init__(self):
        super().__init__()
        self.guide, self.target, self.head = conv(3), conv(), nn.Linear(8, 2)
        self.label = "mine"

    def forward_features(self, x):
        return self.target(F.relu(self.guide(x)))

    def forward(self, x):
        features = self.forward_features(x)
        if features.mean() > 1e9:  # depends on data
            raise RuntimeError
        return self.head(features.mean((2, 3)))

    def predict(self, x):
        return self(x).argmax(1)


class Containers(nn.Module):
    """The module around guide and target is only iterated over, never called."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(conv(3), nn.ReLU(), conv(), nn.ReLU(), conv())
        self.blocks = nn.ModuleList([nn.Sequential(conv(), nn.ReLU()), nn.Sequential(conv(), nn.ReLU())])

    def forward(self, x):
        for layer in self.features:
            x = layer(x)
        for block in self.blocks:
            x = block(x)
        return x


class Constants(nn.Module):
    """Makes tensors in its forward."""

    def __init__(self):
        super().__init__()
        self.guide, self.target = conv(3), conv()

    def forward(self, x):
        x = x - torch.tensor([0.1, 0.2, 0.3])[:, None, None]
        return self.target(F.relu(self.guide(x)))


class DataDependent(Plain):
    """Nothing here can be traced, and the attempt makes a tensor first."""

    def forward(self, x):
        if (x * torch.ones(3, 1, 1)).sum() > 0:
            x = -x
        return super().forward(x)


class TupleGuide(nn.Module):
    """The guide module returns a tuple; `tokens` one of [B, N, C]."""

    def __init__(self, *, tokens=False):
        super().__init__()
        self.block = _Tokens() if tokens else _Pair()
        self.target = conv()

    def forward(self, x):
        out = self.block(x)
        return self.target(out[0]) if isinstance(self.block, _Pair) else self.target(out.mT.unflatten(2, x.shape[2:]))


class _Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = conv(3)

    def forward(self, x):
        return self.c(x), x


class _Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = conv(3)

    def forward(self, x):
        return self.c(x).flatten(2).mT


class Folded(nn.Module):
    """The target sees another batch size than the guide."""

    def __init__(self):
        super().__init__()
        self.guide, self.target = conv(3), conv()

    def forward(self, x):
        g = F.relu(self.guide(x))
        return self.target(torch.cat([g, g]))


class StandardizedConv2d(nn.Conv2d):
    """Changes its weight in forward, as timm's StdConv2d does."""

    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NamedConv2d(nn.Conv2d):
    """A subclass that computes what Conv2d computes."""

    def fan_in(self):
        return self.weight[0].numel()


def with_target(target):
    """Plain, with another module as target."""
    net = Plain()
    net.target = target
    return net


class OfOneSize(nn.Module):
    """For images of 24 x 32 alone, and enlarging to that size."""

    def __init__(self):
        super().__init__()
        self.stem, self.guide, self.target = conv(3, stride=4), conv(), conv(8, 2)

    def forward(self, x):
        if x.shape[2] != 24 or x.shape[3] != 32:
            raise ValueError(f"images must be 24 x 32, got {tuple(x.shape[2:])}")
        scores = self.target(F.relu(self.guide(self.stem(x))))
        return F.interpolate(scores, size=(24, 32), mode="bilinear")
