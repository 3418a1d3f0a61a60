"""What a replay gives is what the whole network gives, and it computes the trunk once."""

import blobs
import enlarging_nets
import pytest
import torch
import torch.nn.functional as F
import torchvision
from sampled import sampled
from torch import nn

import hotswap
from hotswap.measure.compare import tensors
from hotswap.searching.replay import Replay
from hotswap.surgery.prepare import sharing_weights

IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


class InPlace(nn.Module):
    """Residuals and activations in place, a list that its caller empties, and a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.head = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 5, 1)
        self.stages = Stages()

    def forward(self, x):
        x = F.relu_(self.first(x))
        y = self.twice(x)
        y += x
        y = self.twice(F.relu(y, inplace=True))
        stages = self.stages(y)
        y = stages.pop() + stages.pop(0)
        y = F.interpolate(y, scale_factor=2, mode="bilinear")
        y = self.head(y).mul_(2)
        return {"out": F.interpolate(y, scale_factor=2, mode="bilinear"), "all": stages}


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))

    def forward(self, x):
        return [conv(x) for conv in self.convs]


NETS = {
    "in place": InPlace,
    "coarse": blobs.Coarse,
    "every kind": enlarging_nets.Net,
    "deeplab": lambda: torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=5
    ),
}


METHODS = ("auto", "hooks")  # by turns the first, which is not slow


@pytest.mark.parametrize(
    ("name", "method"),
    sampled([(name, method) for n, name in enumerate(NETS) for method in METHODS[:: 1 if n % 2 else -1]][:-1]),
)
def test_replayed_outputs_are_those_of_whole_runs(name, method):
    net = NETS[name]().eval()
    targets = ["resize_*", hotswap.plan(net, "resize_*", "input", example_inputs=IMAGE).resizes[-1].target_alias]
    swapped = [
        hotswap.convert(sharing_weights(net), x, "input", guide_scale=3.0, example_inputs=IMAGE, method=method)
        for x in targets
    ]
    with torch.no_grad():  # as a search runs them
        expected = [tensors(network(IMAGE)) for network in (net, *swapped)]
    attributes = [sorted(vars(module)) for network in (net, *swapped) for module in network.modules()]
    replay = Replay(net, swapped)
    with replay.installed(swapped):
        plain = replay.plain((IMAGE,))
        for _ in range(2):
            outputs = [replay.swapped(network, (IMAGE,)) for network in swapped]
            for output, whole in zip([plain, *outputs], expected, strict=True):
                assert tensors(output).keys() == whole.keys()
                assert all(torch.equal(x, whole[where]) for where, x in tensors(output).items())
    assert [sorted(vars(module)) for network in (net, *swapped) for module in network.modules()] == attributes


def test_the_trunk_is_computed_once():
    net = NETS["deeplab"]().eval()
    swapped = hotswap.convert(sharing_weights(net), "resize_*", "input", guide_scale=3.0, example_inputs=IMAGE)
    replay, calls = Replay(net, [swapped]), []
    for network in (net, swapped):
        network.backbone["0"].register_forward_hook(lambda *_: calls.append(1))
    with replay.installed([swapped]):
        replay.plain((IMAGE,))
        for _ in range(3):
            replay.swapped(swapped, (IMAGE,))
        assert len(calls) == 1
        replay.swapped(swapped, (IMAGE,), whole=True)
        assert len(calls) == 2


def test_another_image_forgets_the_one_before():
    net = blobs.Coarse().eval()
    swapped = hotswap.convert(sharing_weights(net), "resize", "input", guide_scale=3.0, example_inputs=IMAGE)
    other, replay = IMAGE.flip(3), Replay(net, [swapped])
    with torch.no_grad():
        expected = swapped(other)
    with replay.installed([swapped]):
        replay.plain((IMAGE,))
        replay.plain((other,))
        assert torch.equal(replay.swapped(swapped, (other,)), expected)
