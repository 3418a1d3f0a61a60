"""Plans: resolved, printable, and the same network from the same plan on any machine."""

import dataclasses
import json
from collections import OrderedDict

import networks
import pytest
import torch
import torchvision
from torch import nn

import hotswap
from hotswap.targets.plan import Plan


@pytest.fixture(scope="module")
def vgg():
    return nn.Sequential(OrderedDict(features=networks.thin_vgg11())).eval()


def targets(plan):
    return [swap.target_alias for swap in plan.swaps]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("conv3_2", ["conv3_2"]),
        ("features.8", ["conv3_2"]),
        (["conv4_2", "conv3_2"], ["conv4_2", "conv3_2"]),  # in the order asked for
        (["conv3_2", "features.8", "conv3_*"], ["conv3_2", "conv3_1"]),  # once each
        ("conv[34]_2", ["conv3_2", "conv4_2"]),
        ("features.1*", ["conv4_1", "conv4_2", "conv5_1", "conv5_2"][:4]),
        ("re:features\\.(8|13)", ["conv3_2", "conv4_2"]),
        ("re:conv5_.", ["conv5_1", "conv5_2"]),
        ("auto", ["conv3_2", "conv4_2", "conv5_2"]),
        (["auto", "conv3_1"], ["conv3_2", "conv4_2", "conv5_2", "conv3_1"]),
    ],
)
def test_a_target_has_one_meaning_per_syntax(vgg, given, expected):
    plan = hotswap.plan(vgg, given, "conv2_1")
    if given == "features.1*":  # features.11, .13, .16, .18
        assert targets(plan) == ["conv4_1", "conv4_2", "conv5_1", "conv5_2"]
    assert targets(plan) == expected


def test_a_pattern_passes_over_what_cannot_be_swapped_and_says_so():
    net = torchvision.models.resnet18()
    plan = hotswap.plan(net, "layer3.0.*", "layer1")
    assert [s.target for s in plan.swaps] == ["layer3.0.conv1", "layer3.0.conv2"]
    assert any("also matched 1 that cannot be swapped (layer3.0.downsample.0" in note for note in plan.notes)


def test_auto_passes_over_gates():
    layers = []
    for _ in range(3):
        layers += [networks.conv(3 if not layers else 8), torch.nn.MaxPool2d(2)]
    net = torch.nn.Sequential(*layers, networks.conv(), networks.conv(c_out=1))
    plan = hotswap.plan(net, example_inputs=torch.empty(1, 3, 16, 16))
    assert [(swap.target, swap.guide) for swap in plan.swaps] == [("4", ("2",)), ("6", ("2",))]
    named = hotswap.plan(net, "4", "2", example_inputs=torch.empty(1, 3, 16, 16))
    assert ["gained 0.7 points on one network of two" in str(each) for each in (plan, named)] == [True, False]


def test_a_path_wins_over_an_alias_of_the_same_name():
    net = torch.nn.Sequential()
    for name in ("conv1_2", "conv1_1", "conv1_3"):  # out of step with the aliases
        net.add_module(name, torch.nn.Conv2d(3, 3, 3, padding=1))
    (swap,) = hotswap.plan(net, "conv1_1", "conv1_2").swaps
    assert (swap.target, swap.target_alias) == ("conv1_1", "conv1_2")


def test_planning_changes_nothing(vgg):
    modules = {p: (type(m), m.training, dict(m.__dict__)) for p, m in vgg.named_modules()}
    hotswap.plan(vgg)
    assert {p: (type(m), m.training, dict(m.__dict__)) for p, m in vgg.named_modules()} == modules


def test_json_round_trip_gives_the_same_network(vgg):
    plan = hotswap.plan(vgg, "conv[34]_2", "conv2_1", guide_scale=0.3, learn_scale=True, resize="area")
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        a, b = hotswap.apply(vgg, plan)(x), hotswap.apply(vgg, again)(x)
        assert torch.equal(a, b)
        direct = hotswap.convert(vgg, "conv[34]_2", "conv2_1", guide_scale=0.3, learn_scale=True, resize="area")
        assert torch.equal(a, direct(x))


def test_the_plan_of_a_converted_network_has_its_scales_of_now(vgg):
    converted = hotswap.convert(vgg, "conv3_2", "conv2_1")
    converted.features[8].guide_scale = 0.25
    (swap,) = hotswap.status(converted).plan.swaps
    assert swap.guide_scale == 0.25
    learned = hotswap.convert(vgg, "conv3_2", "conv2_1", learn_scale=True)
    learned.features[8].guide_scale = 0.25
    assert hotswap.status(learned).plan.swaps[0].guide_scale == pytest.approx(0.25)


def test_printed_as_a_table(vgg):
    text = str(hotswap.plan(vgg))
    for expected in ("conv3_2", "features.8", "3x3, 8 -> 8", "conv2_1 (features.3)", "0.0001", "bilinear"):
        assert expected in text
    assert "note: rewrites Sequential.forward of 'features'" in text
    converted = hotswap.convert(vgg)
    assert str(hotswap.status(converted)) == text
    assert str(hotswap.status(vgg)) == "nothing is swapped"
    assert "guide=conv2_1, guide_scale=0.0001" in repr(converted)


GOOD = {
    "target": "a", "guide": ["b"], "kernel_size": [3, 3], "in_channels": 1, "out_channels": 1, "guide_scale": 0.1,
    "learn_scale": False, "resize": "area", "after_activation": True, "target_alias": None, "guide_alias": [None],
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "the plan must be a mapping, got a list"),
        ({"notes": []}, "must have 'swaps'"),
        ({"swaps": [], "notes": []}, "at least one swap"),
        ({"swaps": "x", "notes": []}, "swaps must be list, got 'x'"),
        ({"swaps": [GOOD], "notes": [1]}, "notes must be strings"),
        ({"swaps": [3], "notes": []}, "swap 0 of the plan must be a mapping"),
        ({"swaps": [GOOD, GOOD | {"resize": "cubic"}], "notes": []}, "resize must be one of"),
        ({"swaps": [GOOD | {"guide_scale": True}], "notes": []}, "guide_scale must be int or float, got True"),
        ({"swaps": [GOOD | {"guide_scale": -1}], "notes": []}, "guide_scale must be a number >= 0"),
        ({"swaps": [GOOD | {"kernel_size": [3]}], "notes": []}, "kernel_size must be two integers"),
        ({"swaps": [GOOD | {"guide": ["b", 3]}], "notes": []}, "guide must be strings, got"),
        ({"swaps": [GOOD | {"guide": []}], "notes": []}, "must have at least one source"),
        ({"swaps": [GOOD | {"guide_alias": [None, "x"]}], "notes": []}, "guide_alias must hold one alias"),
        *(
            ({"swaps": [GOOD | {"taps": [tap]}], "notes": []}, r"taps must be \[path, calls\] or null, got")
            for tap in (0, 1, "", "ab", [], ["a"], ["a", "b"], [1, 2], ["a", True], [["a"], 1], {"a": 1, "b": 2})
        ),
        ({"swaps": [GOOD | {"target": None}], "notes": []}, "target must be str, got None"),
        ({"swaps": [GOOD | {"code": "x"}], "notes": []}, "got also 'code'"),
        ({"swaps": [{k: v for k, v in GOOD.items() if k != "guide"}], "notes": []}, "must have 'guide'"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_no_plan_is_refused_in_one_line(data, message):
    with pytest.raises(hotswap.HotswapError, match=message) as error:
        Plan.from_dict(data)
    assert "\n" not in str(error.value)


def test_plans_are_frozen(vgg):
    plan = hotswap.plan(vgg)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.swaps = ()


def test_plans_of_format_1_are_read():
    lone = {"guide": "b", "guide_alias": None}
    plan = Plan.from_dict({"swaps": [GOOD | lone, GOOD | {"guide": "b", "guide_alias": "conv1_1"}], "notes": []})
    assert [(s.guide, s.guide_alias) for s in plan.swaps] == [(("b",), (None,)), (("b",), ("conv1_1",))]
    assert Plan.from_dict(plan.to_dict()) == plan


class Adapter(nn.Module):
    """Around a layer, as PEFT's are."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.low = layer, nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.base_layer(x) + self.low(x)


class Within(nn.Module):
    """The network that PEFT makes of one, or what is between the two."""

    def __init__(self, inner):
        super().__init__()
        setattr(self, "base_model" if isinstance(inner, Within) else "model", inner)

    def forward(self, x):
        return next(self.children())(x)


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_a_layer_within_adapters_keeps_its_name(method):
    torch.manual_seed(0)
    image, net = torch.rand(1, 3, 16, 16), networks.Plain().eval()
    net.target, net.guide = Adapter(Adapter(net.target)), Adapter(net.guide)
    plan = hotswap.plan(net, ["target"], {"target": "guide"}, method=method)
    assert [(swap.target, swap.guide) for swap in plan.swaps] == [("target.base_layer.base_layer", ("guide",))]
    (swap,) = hotswap.plan(Within(Within(net)), "target", "guide", method=method, example_inputs=image).swaps
    inside = "base_model.model"
    assert (swap.target, swap.guide) == (f"{inside}.target.base_layer.base_layer", (f"{inside}.guide",))
