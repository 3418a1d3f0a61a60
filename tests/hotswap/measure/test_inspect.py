import json

import networks
import pytest
import timm
import torch
import torchvision
from torch import nn

import hotswap

PAPER_NAMES = [f"conv{s}_{i}" for s, n in enumerate((2, 2, 3, 3, 3), start=1) for i in range(1, n + 1)]


@pytest.fixture(scope="module")
def vgg16():
    return hotswap.inspect(torchvision.models.vgg16())


def test_aliases_of_vgg16_are_the_papers_names(vgg16):
    convolutions = vgg16.convolutions
    assert [c.alias for c in convolutions] == PAPER_NAMES
    assert {c.alias: c.paper for c in convolutions if c.paper} == {
        "conv2_2": "guide", "conv3_3": "target", "conv4_3": "target", "conv5_3": "target",
    }  # fmt: skip


def test_costs_and_sizes_of_vgg16(vgg16):
    by_alias = {c.alias: c for c in vgg16.convolutions}
    assert by_alias["conv1_1"].parameters == 64 * 3 * 9 + 64
    assert by_alias["conv3_1"].output_size == (56, 56)
    assert sum(c.multiply_adds for c in vgg16.convolutions) == 15_346_630_656  # the well-known 15.3 G


def test_why_a_convolution_cannot_guide():
    class Net(networks.Plain):
        def __init__(self):
            super().__init__()
            self.spare, self.deep = networks.conv(), nn.Conv2d(2, 8, 1)

        def forward(self, x):
            return self.deep(super().forward(x)[0])

    why = {c.path: c.why_no_guide for c in hotswap.inspect(Net(), torch.empty(1, 3, 12, 12)).convolutions}
    after = "nothing that can be a target runs after it"
    assert why["stem"] is why["guide"] is None
    assert why["target"] == why["head"] == after
    assert why["spare"] == "the network never calls it"
    assert why["deep"] == "it gives no [B, C, H, W] tensor"


def test_a_calibrated_network_tells_its_deviation_and_drift():
    net = networks.thin_vgg11()
    converted = hotswap.convert(net, calibrate_on=torch.rand(1, 3, 48, 48), deviation=0.2)
    inspection = hotswap.inspect(converted, torch.empty(1, 3, 48, 48))
    by_path = {c.path: c for c in inspection.convolutions}
    assert by_path["8"].swap.deviation == pytest.approx(0.2, rel=1e-3)
    assert "swapped already: guide conv2_1, scale" in by_path["8"].why_no_target
    text = str(inspection)
    assert "3 are swapped" in text
    assert "drift when calibrated" in text
    assert json.loads(json.dumps(inspection.to_dict()))["convolutions"][3]["swap"]["conserve"] == "mean"
    inert = hotswap.convert(net, guide_scale=1e-7, calibrate_on=torch.rand(1, 3, 48, 48))
    assert "3 of 3 swaps are inert" in str(hotswap.inspect(inert))


def test_example_inputs_set_the_sizes():
    inspection = hotswap.inspect(torchvision.models.resnet18(), torch.empty(1, 3, 64, 96))
    stem = inspection.convolutions[0]
    assert (stem.path, stem.alias, stem.output_size) == ("conv1", "conv1_1", (32, 48))
    shortcut = next(c for c in inspection.convolutions if c.path == "layer2.0.downsample.0")
    assert shortcut.alias is None
    assert "1x1" in shortcut.why_no_target
    assert shortcut.why_no_guide is None


def test_timm_networks_are_run_at_their_own_size():
    inspection = hotswap.inspect(timm.create_model("mobilenetv3_small_050", in_chans=1))
    assert inspection.convolutions[0].output_size == (112, 112)


def test_a_first_convolution_on_a_rearranged_image_does_not_set_the_channels():
    net = torch.nn.Sequential(torch.nn.PixelUnshuffle(4), torch.nn.Conv2d(48, 8, 3, padding=1))
    assert hotswap.inspect(net).convolutions[0].output_size == (56, 56)


def test_a_failed_run_logs_nothing(capfd):
    hotswap.inspect(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(9)))
    assert capfd.readouterr() == ("", "")


def test_nothing_is_computed_or_changed():
    net = torchvision.models.resnet18().train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    hotswap.inspect(net)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())  # batch norm's counts too
    assert all(m.training for m in net.modules())
    assert not any(m._forward_hooks for m in net.modules())


def test_json_and_table():
    net = networks.Plain(stride=2, groups=4)
    inspection = hotswap.inspect(net, torch.empty(1, 3, 16, 16))
    assert json.loads(json.dumps(inspection.to_dict()))["convolutions"][2]["path"] == "target"
    text = str(inspection)
    assert "3x3, 8 -> 8, stride 2, groups 4" in text
    assert 'note: "paper" needs spatial convolutions' in text


def test_a_network_that_cannot_run_is_still_listed():
    inspection = hotswap.inspect(networks.Siamese())
    assert [c.path for c in inspection.convolutions] == ["guide", "target"]
    assert all(c.alias is None and c.output_size is None for c in inspection.convolutions)
    assert any("missing 1 required positional argument" in note for note in inspection.notes)


def test_inputs_it_does_not_take_are_refused():
    with pytest.raises(hotswap.HotswapError, match=r"fake inputs \[1, 4, 32, 32\]"):
        hotswap.inspect(torchvision.models.resnet18(), torch.empty(1, 4, 32, 32))


def test_a_converted_network_can_be_inspected():
    converted = hotswap.convert(networks.thin_vgg11())
    by_path = {c.path: c for c in hotswap.inspect(converted).convolutions}
    assert "swapped already" in by_path["8"].why_no_target
