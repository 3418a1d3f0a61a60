"""Networks converted by hooks, and what is left of a pass."""

import torch
import torch.nn.functional as F
from networks import conv
from swap_by_hand import pac, swap
from torch import nn

from hotswap.surgery.install import records


def by_hooks(net, targets="target", guide="guide", **kwargs):
    return swap(net, targets, guide, method="hooks", **kwargs)


def passes_of(converted):
    return next(record.steering.passes for _, _, record in records(converted))


def nothing_is_kept(converted):
    return not passes_of(converted)._frames


class Stages(nn.Module):
    """guide, activation and targets in parts that a user may call, or checkpoint, apart."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3), nn.ReLU())
        self.first = nn.Sequential(conv(), nn.ReLU(inplace=True), conv())
        self.second = nn.Sequential(conv(), nn.ReLU(), conv())
        self.third = nn.Sequential(nn.ReLU(), conv())

    def forward(self, x):
        return self.third(self.second(self.first(self.stem(x))))

    def forward_features(self, x):
        return self.second(self.first(self.stem(x)))


GUIDE, TARGETS = "first.0", ("first.2", "second.2")


def staged(**kwargs):
    torch.manual_seed(3)
    return by_hooks(Stages(), TARGETS, GUIDE, **kwargs)


def staged_expected(net, x):
    g = F.relu(net.first[0](net.stem(x)))
    y = pac(net.first[2], g, g)
    return net.third(pac(net.second[2], F.relu(net.second[0](y)), g))
