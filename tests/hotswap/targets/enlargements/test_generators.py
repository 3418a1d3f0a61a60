"""Enlargements that a generator makes: it goes on where it is looped over or unpacked, and not in a call."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hotswap

IMAGE = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def enlarged(maps):
    for each in maps:
        yield F.interpolate(each, scale_factor=4, mode="bilinear")


def unpacked(maps):
    return [*enlarged(maps)]


def looped(maps):
    out = []
    for each in enlarged(maps):
        out.append(each)  # noqa: PERF402 (a loop is what is tried)
    return out


def assigned(maps):
    first, second = enlarged(maps)
    return [first, second]


def delegated(maps):
    def through():
        yield from enlarged(maps)

    return list(through())


def expression(maps):
    made = (F.interpolate(each, scale_factor=4, mode="bilinear") for each in maps)
    return [*made]


def apart(maps):
    one = (F.interpolate(each, scale_factor=4, mode="bilinear") for each in maps[:1])
    other = (F.interpolate(each, scale_factor=4, mode="bilinear") for each in maps[1:])
    return [*one, *other]


class Network(nn.Module):
    """Two maps, enlarged by a generator in some way."""

    def __init__(self, run):
        super().__init__()
        self.first, self.second, self.run = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(3, 4, 4, 4), run

    def forward(self, x):
        return torch.cat(self.run([self.first(x), self.second(x)]), dim=1)


@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("run", [unpacked, looped, assigned, delegated, expression, apart])
@torch.no_grad()
def test_one_of_two_is_guided(run, method):
    torch.manual_seed(0)
    net = Network(run).eval()
    plain = net(IMAGE)
    both = hotswap.convert(net, "resize_*", "input", calibrate_on=[IMAGE], method=method)(IMAGE)
    second = hotswap.convert(net, "resize_2", "input", calibrate_on=[IMAGE], method=method)
    assert torch.equal(second(IMAGE)[:, :4], plain[:, :4])
    torch.testing.assert_close(second(IMAGE)[:, 4:], both[:, 4:])
    assert not torch.equal(both[:, :4], plain[:, :4])
    assert not torch.equal(both[:, 4:], plain[:, 4:])
    plan = hotswap.Plan.from_dict(json.loads(json.dumps(hotswap.status(second).plan.to_dict())))
    torch.testing.assert_close(hotswap.apply(net, plan)(IMAGE), second(IMAGE))
