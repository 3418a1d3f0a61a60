"""The target "auto": enlargements of scores, else layers on scores, else the paper's convolutions."""

import json

import pytest
import torch
import torch.nn.functional as F
import torchvision
from saving import same
from torch import nn

import hotswap
from hotswap.errors import HotswapError

IMAGE = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
LAB = hotswap.GuideSpace("lab", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class Net(nn.Module):
    """Three stages, and scores or values: enlarged by interpolation, by what it learned, or over the whole image."""

    def __init__(self, end, classes=5):
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(3))
        self.norm, self.head, self.end = nn.BatchNorm2d(8), nn.Conv2d(8, classes, 1), end
        self.up = nn.ConvTranspose2d(classes, classes, 4, stride=4)

    def forward(self, x):
        y = x
        for index, stage in enumerate(self.stages):
            y = F.relu(stage(F.max_pool2d(y, 2) if index else y))
        scores = self.head(self.norm(y))
        if self.end == "interpolated":
            return {"out": F.interpolate(scores, x.shape[2:], mode="bilinear")}
        if self.end == "learned":
            return self.up(scores)
        return scores.mean((2, 3)) if self.end == "whole" else scores


def net(end, classes=5):
    torch.manual_seed(0)
    model = Net(end, classes).eval()
    for parameter in model.up.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def kinds(plan):
    """What a plan swaps: paths of convolutions, enlargements, the output's refinement."""
    return [swap.target for swap in plan.swaps], len(plan.resizes), plan.output and plan.output.kind


PAPER = ["stages.2"]
CASES = {
    "interpolated": (net("interpolated"), {}, ([], 1, None)),
    "one channel": (net("interpolated", 1), {}, ([], 1, None)),
    "learned": (net("learned"), {}, ([], 0, "pac")),
    "by the image": (net("learned"), {"guide": "input"}, ([], 0, "pac")),
    "values": (net("learned", 3), {}, (PAPER, 0, None)),
    "coarse scores": (net("coarse"), {}, (PAPER, 0, None)),
    "one answer": (net("whole"), {}, (PAPER, 0, None)),
    "an activation guides": (net("interpolated"), {"guide": "stages.0"}, (PAPER, 0, None)),
    "several guide": (net("learned"), {"guide": ["input", "stages.0"]}, (PAPER, 0, None)),
}


@pytest.mark.parametrize("case", CASES)
def test_auto_is_what_gained_most_of_what_there_is(case):
    model, options, expected = CASES[case]
    plan = hotswap.plan(model, **options, space=LAB if not expected[0] else "auto", example_inputs=IMAGE)
    assert kinds(plan) == expected
    name = "paper" if expected[0] else "output" if expected[2] else "resize"
    assert sum(f'"{name}" here' in note for note in plan.notes) == 1
    assert any("guide other than the image" in note for note in plan.notes) == ("guides" in case or "several" in case)
    by_name = hotswap.plan(model, name, **options, space=LAB if not expected[0] else "auto", example_inputs=IMAGE)
    assert by_name.entries == plan.entries
    assert by_name.output == plan.output


def test_beside_other_targets_and_as_a_key():
    both = hotswap.plan(net("interpolated"), ["auto", "paper"], guide_scale={"auto": 2, "*": 3}, example_inputs=IMAGE)
    assert kinds(both)[:2] == (PAPER, 1)
    assert [both.resizes[0].guide_scale, both.swaps[0].guide_scale] == [2, 3]
    paper = hotswap.plan(net("whole"), "auto", {"auto": "stages.0"}, guide_scale={"auto": 2}, example_inputs=IMAGE)
    assert [(x.guide, x.guide_scale) for x in paper.swaps] == [(("stages.0",), 2)]


def test_layers_on_scores_change_nothing_until_they_are_trained_and_can_be():
    model = net("learned")
    converted = hotswap.convert(model, calibrate_on=[IMAGE])
    assert torch.equal(converted(IMAGE), model(IMAGE))
    converted(IMAGE).square().mean().backward()
    assert float(converted._hotswap_output.gate.grad.abs().min()) > 0
    assert same(hotswap.revert(converted).state_dict(), model.state_dict())
    with pytest.raises(HotswapError, match="the output is refined already"):
        hotswap.convert(converted, calibrate_on=[IMAGE])


def test_refusals_say_what_auto_is():
    with pytest.raises(HotswapError, match=r'^"auto" is "output" here.*normalised: give calibrate_on'):
        hotswap.convert(net("learned"), example_inputs=IMAGE)
    with pytest.raises(HotswapError, match=r'^"auto" is "paper" here.*; "paper" needs spatial convolutions'):
        hotswap.convert(nn.Sequential(nn.Conv2d(3, 3, 3)), example_inputs=IMAGE)
    with pytest.raises(HotswapError, match="gate must be False where no convolution is a target"):
        hotswap.convert(net("interpolated"), gate=True, example_inputs=IMAGE)
    with pytest.raises(HotswapError, match=r'^"auto" is "output" here.*; learn_scale must be False'):
        hotswap.convert(net("learned"), learn_scale=True, example_inputs=IMAGE)


class OfTwo(Net):
    """Takes two images, which no default has."""

    def forward(self, x, y):
        return super().forward(x + y)


def test_a_network_that_cannot_be_run_is_refused():
    with pytest.raises(HotswapError, match='"paper" needs one run of the network on fake inputs'):
        hotswap.plan(OfTwo("learned"))


def test_outputs_are_found_without_inputs_of_the_users():
    assert kinds(hotswap.plan(net("learned"), "output_guided", space=LAB)) == ([], 0, "guided")


def test_published_networks():
    models = torchvision.models
    lraspp = models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    assert kinds(hotswap.plan(lraspp, check=False)) == ([], 1, None)
    resnet = hotswap.plan(models.resnet18(), check=False)
    assert kinds(resnet) == (["layer2.1.conv2", "layer3.1.conv2", "layer4.1.conv2"], 0, None)
    smp = pytest.importorskip("segmentation_models_pytorch")
    unet = smp.Unet("resnet18", encoder_weights=None, classes=5)
    assert kinds(hotswap.plan(unet, check=False, space=LAB)) == ([], 0, "pac")
    assert json.loads(json.dumps(hotswap.inspect(unet).to_dict()))["convolutions"][0]["paper"] is None
