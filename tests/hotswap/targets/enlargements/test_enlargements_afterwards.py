"""Enlargements beside convolutions, and what people do with a network afterwards."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from enlarging_nets import ALIASES, EVERY, IMAGE, Net, assert_same, convert, run
from torch import nn

import hotswap
import pac_ops
from hotswap import HotswapError, Plan
from hotswap.targets.enlargement import GuidedResize


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, image):
        fine = F.relu(self.first(image))
        return [self.second(fine), fine]


class Unpacking(nn.Module):
    """Its own forward names the parts of what its encoder returns."""

    def __init__(self):
        super().__init__()
        self.encoder, self.mix = Encoder(), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, image):
        coarse, *others = self.encoder(image)
        x = F.interpolate(coarse, scale_factor=2, mode="bilinear") + others[0]
        return {"out": F.interpolate(self.mix(x), scale_factor=2, mode="bilinear")}


@pytest.mark.parametrize("targets", ["resize_*", ["mix", "resize_2"]], ids=str)
def test_a_network_that_unpacks_what_a_part_returns(targets, way):
    torch.manual_seed(0)
    net = Unpacking().eval()
    before = run(net)
    converted = convert(copy.deepcopy(net), targets, guide_scale=0.0)
    said = {"fx": "rewrites Unpacking.forward", "hooks": "caught by hooks, within calls of the network"}
    assert said[way] in str(hotswap.status(converted))
    assert_same(run(converted), before)
    assert (run(convert(copy.deepcopy(net), targets))["out"] - before["out"]).abs().max() > 1e-3
    assert_same(run(hotswap.revert(converted)), before, rtol=0, atol=0)


class InEvaluation(nn.Module):
    """Scores are enlarged in evaluation alone, or in training by another call."""

    def __init__(self, by):
        super().__init__()
        self.by, self.conv = by, nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x):
        scores = self.conv(x)
        if self.training:
            return F.interpolate(scores, scale_factor=2, mode="bilinear") if self.by == "another" else scores
        return self.up(scores) if self.by == "module" else F.interpolate(scores, scale_factor=2, mode="bilinear")


@pytest.mark.parametrize("by", ["module", "call"])
def test_an_enlargement_in_evaluation_alone(by):
    net, x = InEvaluation(by), torch.rand(1, 3, 8, 10)
    swapped = hotswap.convert(net, "resize_*", "input", guide_scale=4.0, footprint=2, example_inputs=x)
    torch.testing.assert_close(swapped(x), net(x), rtol=0, atol=0)
    expected = pac_ops.pacresize2d(net(x), x, scale=4.0)
    torch.testing.assert_close(swapped.eval()(x), expected)
    assert not torch.allclose(expected, net.eval()(x), atol=1e-3)


def test_another_call_in_training_is_refused_where_code_is_rewritten(way):
    net, x = InEvaluation("another"), torch.rand(1, 3, 8, 10)
    if way == "fx":
        with pytest.raises(HotswapError, match="makes in evaluation, and in training it makes another, which would"):
            hotswap.convert(net, "resize_*", "input", example_inputs=x)
    assert hotswap.status(net).plan is None


def test_a_part_that_cannot_be_opened_is_left_to_hooks():
    net = Unpacking().eval()
    traced = run(convert(copy.deepcopy(net), "resize_*"))
    net.encoder.register_forward_hook(lambda *_: None)
    converted = convert(net, "resize_*")
    assert "enlargements not by fx: " in str(hotswap.status(converted))
    assert_same(run(converted), traced)


def test_mixed_with_convolutions(net):
    converted = convert(net, ["resize_*", "block.conv"], {"resize_*": "input", "block.conv": "b"}, guide_scale=0.0)
    assert_same(run(net), run(converted))
    assert_same(run(copy.deepcopy(net).train()), run(copy.deepcopy(converted).train()))
    plan = hotswap.status(converted).plan
    assert [swap.target for swap in plan.swaps] == ["block.conv"]
    assert [resize.target_alias for resize in plan.resizes] == ALIASES[:4]
    assert_same(run(net), run(hotswap.revert(converted)), rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"learn_scale": True}])
def test_revert_leaves_nothing(net, options):
    converted = convert(net, **options)
    added = set(converted.state_dict()) - set(net.state_dict())
    assert all(name.endswith("guide_log_scale") for name in added)
    assert len(added) == (4 if options else 0)
    plain = hotswap.revert(converted)
    assert [type(m) for m in plain.modules()] == [type(m) for m in net.modules()]
    assert [set(vars(m)) for m in plain.modules()] == [set(vars(m)) for m in net.modules()]
    assert_same(run(net), run(plain), rtol=0, atol=0)


def test_a_parametrisation_put_on_a_guided_layer_outlives_the_swap(net):
    converted = convert(net, "transposed")
    torch.nn.utils.parametrizations.weight_norm(converted.transposed)
    plain = hotswap.revert(converted)
    assert not isinstance(plain.transposed, GuidedResize)
    assert_same(run(plain), run(net))


def test_calibrate_verify_and_status(net):
    converted = convert(net, calibrate_on=IMAGE, guide_scale="auto", deviation=0.25, learn_scale=True)
    plan = hotswap.status(converted).plan
    assert [resize.deviation for resize in plan.resizes] == [pytest.approx(0.25, abs=1e-3)] * 4
    assert plan.drift > 0
    checked = hotswap.verify(converted, IMAGE)
    assert [check.path for check in checked.targets] == [
        *("F.interpolate 0 in block", "F.interpolate 1 in block", "up", "transposed")
    ]
    assert [check.deviation for check in checked.targets] == [pytest.approx(0.25, abs=1e-3)] * 4
    assert checked.same_state
    hotswap.calibrate(converted, IMAGE, deviation=0.5)
    assert hotswap.status(converted).plan.resizes[0].deviation == pytest.approx(0.5, abs=1e-3)
    inert = hotswap.verify(convert(net, guide_scale=1e-4), IMAGE)
    assert "4 of 4 swaps are inert" in inert.warnings[0]


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_save_and_load(net, tmp_path, suffix):
    options = {"learn_scale": True, "calibrate_on": IMAGE, "guide_scale": "auto"}
    converted = convert(net, ["resize_*", "block.conv"], {"resize_*": "input", "block.conv": "b"}, **options)
    hotswap.save(converted, tmp_path / f"net{suffix}")
    loaded = hotswap.load(tmp_path / f"net{suffix}", Net()).eval()
    assert_same(run(converted), run(loaded), rtol=0, atol=0)
    assert hotswap.status(loaded).plan == hotswap.status(converted).plan


def test_plan_goes_through_json_and_is_applied(net):
    made = hotswap.plan(net, EVERY, "input", guide_scale=2.0, footprint=4, example_inputs=IMAGE)
    assert "transposed   4x4" in str(made)
    again = Plan.from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    applied = hotswap.apply(net, again, example_inputs=IMAGE)
    assert_same(run(applied), run(convert(net, footprint=4)), rtol=0, atol=0)
    assert hotswap.status(applied).plan == made


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "bicubic"}, "mode must be one of bilinear, nearest"),
        ({"footprint": 3}, "footprint must be one of 2, 4, 6, 8, or one of these for each step, got 3"),
        ({"guide": []}, "must have at least one source"),
        ({"guide_scale": -1.0}, "guide_scale must be a number >= 0"),
        ({"call": -1}, "call must be null or a number >= 0"),
        ({"call": "0"}, "call must be int or null, got '0'"),
        ({"extra": 1}, "must hold only .*, got also 'extra'"),
        ({"mode": "nearest"}, "reads one coarse pixel"),
    ],
    ids=str,
)
def test_a_plan_with_wrong_values_is_refused(net, changed, message):
    data = hotswap.plan(net, "resize_1", "input", example_inputs=IMAGE).to_dict()
    data["resizes"][0] |= changed
    with pytest.raises(HotswapError, match=message):
        Plan.from_dict(data)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": "blok"}, "target 'blok' is no module of this network; closest: block"),
        ({"call": 2, "at": []}, "target 'F.interpolate 2 in block' is never called by Net"),
        ({"call": None}, "target 'block' cannot be swapped: its mode is None"),
        ({"mode": "nearest", "footprint": 4}, "must be, by the plan, of mode 'nearest', got 'bilinear'"),
        ({"guide": ["block"]}, "guide 'block' .* target"),
        ({"guide": ["near"]}, "guide 'near'(, which did not run before it| is computed after target)"),
    ],
    ids=str,
)
def test_a_plan_for_another_network_is_refused(net, changed, message):
    data = hotswap.plan(net, "resize_1", "input", example_inputs=IMAGE).to_dict()
    data["resizes"][0] |= changed
    with pytest.raises(HotswapError, match=message):
        hotswap.apply(net, Plan.from_dict(data), example_inputs=IMAGE)


def test_compile_export_deepcopy_and_wrapping(net):
    converted = convert(net, [*EVERY, "block.conv"], learn_scale=True)
    expected = run(converted)
    torch._dynamo.reset()
    assert_same(run(torch.compile(converted, fullgraph=True, backend="eager")), expected)
    assert_same(torch.export.export(converted, (IMAGE,)).module()(IMAGE), expected)
    assert_same(run(copy.deepcopy(converted)), expected, rtol=0, atol=0)
    wrapped = nn.ModuleDict({"inner": converted})
    assert hotswap.status(wrapped).plan.resizes[0].target == "inner.block"
    assert hotswap.status(wrapped).plan.resizes[0].guide == ("input",)


class Sized(nn.Module):
    """Enlarges to the image's size, or by a fixed factor."""

    def __init__(self, factor):
        super().__init__()
        self.conv, self.factor = nn.Conv2d(3, 4, 3, 3, 1), factor

    def forward(self, image):
        x = self.conv(image)
        if self.factor is None:
            return F.interpolate(x, size=image.shape[-2:], mode="bilinear")
        return F.interpolate(x, scale_factor=self.factor, mode="bilinear")


@pytest.mark.parametrize("factor", [None, pytest.param((2, 2.5), marks=pytest.mark.slow)])
def test_export_with_dynamic_height_and_width(factor):
    image, auto = torch.rand(2, 3, 28, 31), torch.export.Dim.AUTO
    converted = convert(Sized(factor).eval(), "resize_*", example_inputs=image)
    program = torch.export.export(converted, (image,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    other = torch.rand(3, 3, 40, 52)
    torch.testing.assert_close(program.module()(other), run(converted, other))


def test_half_precision_and_autocast(net):
    converted = convert(net)
    expected = run(converted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same({k: x.float() for k, x in run(converted).items()}, expected, rtol=0.1, atol=0.05)
    half = convert(net).bfloat16()
    assert run(half, IMAGE.bfloat16())["fine"].dtype == torch.bfloat16
