"""Enlargements as targets: found, guided, identical where K = 1, measured, stored, undone and refused."""

import copy
import json
import re

import pytest
import torch
import torch.nn.functional as F
from networks import enlarge_by_hooks
from torch import nn

import hotswap
import pac_ops
from hotswap import HotswapError, Plan
from hotswap.measure.compare import swapped_layers
from hotswap.targets.enlargement import GuidedResize, is_bilinear


@pytest.fixture(params=["fx", "hooks"], autouse=True)
def way(request, monkeypatch):
    """All by either; hooks where the code cannot be traced."""
    if request.param == "hooks":
        enlarge_by_hooks(monkeypatch)
    return request.param


def bilinear(channels, stride, size, **options):
    """A transposed convolution fixed to bilinear weights."""
    options = {"padding": (size - stride) // 2, "groups": channels} | options
    layer = nn.ConvTranspose2d(channels, channels, size, stride, **options).requires_grad_(False)
    line = 1 - (torch.arange(size) - (size - 1) / 2).abs() / stride
    layer.weight.data.zero_()
    for channel in range(channels):
        layer.weight.data[channel, 0 if layer.groups > 1 else channel] = line[:, None] * line
    return layer


class Block(nn.Module):
    """Two calls of F.interpolate in evaluation, three in training, the extra one first."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, like):
        if self.training:
            F.interpolate(x, scale_factor=3, mode="bilinear")
        x = F.interpolate(x, size=like.shape[-2:], mode="bilinear")
        return F.interpolate(self.conv(x), None, 2.0, "bilinear", True)


class Net(nn.Module):
    """Every kind of enlargement; `block` is called twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.block = Block()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.near = nn.Upsample(scale_factor=8)
        self.transposed = bilinear(4, 2, 4)

    def forward(self, image):
        a = F.relu(self.a(image))
        b = F.relu_(self.b(a))
        c = self.c(b)
        fine = self.block(self.block(c, b), a)  # of the image's size
        return {"fine": fine, "b": self.transposed(self.up(b)), "near": self.near(c), "small": F.avg_pool2d(fine, 2)}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


IMAGE = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(0))
EVERY = ["resize", "transposed"]
ALIASES = ["resize_1", "resize_2", "resize_3", "resize_4", "resize_5"]


def convert(net, targets=EVERY, guide="input", **options):
    return hotswap.convert(net, targets, guide, **{"guide_scale": 2.0, "example_inputs": IMAGE} | options)


def run(net, image=IMAGE):
    with torch.no_grad():
        return net(image)


def assert_same(a, b, **tolerance):
    for name in a:
        torch.testing.assert_close(a[name], b[name], **tolerance or {"rtol": 0, "atol": 2e-6})


# --- what is found ------------------------------------------------------------------------------------------


def test_inspect_lists_resizings_in_the_order_of_their_calls(net):
    found = hotswap.inspect(net, IMAGE)
    listed = [(r.alias, r.path, r.call, r.mode, r.input_size, r.output_size, r.automatic) for r in found.resizes]
    assert listed == [
        ("resize_1", "block", 0, "bilinear", (3, 5), (6, 10), True),
        ("resize_2", "block", 1, "bilinear", (6, 10), (12, 20), True),
        ("resize_3", "up", None, "bilinear", (6, 10), (12, 20), True),
        ("resize_4", "transposed", None, "transposed", (12, 20), (24, 40), True),
        ("resize_5", "near", None, "nearest", (3, 5), (24, 40), False),
    ]
    assert "reads one coarse pixel" in found.resizes[4].why_no_target
    text = str(found)
    assert "F.interpolate 1 in block" in text
    assert "6x10 -> 12x20" in text
    json.dumps(found.to_dict())


def test_inspect_shows_swapped_enlargements_by_the_names_they_had(net):
    plain = hotswap.inspect(net, IMAGE).resizes
    converted = convert(net, ["resize_1", "up"])
    hotswap.calibrate(converted, IMAGE)
    found = hotswap.inspect(converted, IMAGE)
    assert [(r.alias, r.path, r.call) for r in found.resizes] == [(r.alias, r.path, r.call) for r in plain]
    swaps = {r.alias: r.swap for r in found.resizes if r.swap is not None}
    assert list(swaps.values()) == list(hotswap.status(converted).plan.resizes)
    assert list(swaps) == ["resize_1", "resize_3"]
    assert found.notes[0].startswith("2 are swapped")
    assert re.search(r"swapped already: guide input, scale [\d.]+, deviation 0\.5", found.resizes[0].why_no_target)
    assert [r.automatic for r in found.resizes] == [False, True, False, True, False]
    json.dumps(found.to_dict())


def test_odd_sizes_count_as_halved(net):
    odd = torch.rand(1, 3, 27, 45)
    sizes = {r.alias: (r.input_size, r.automatic) for r in hotswap.inspect(net, odd).resizes}
    assert sizes["resize_1"] == ((4, 6), True)  # to 7 x 12
    converted = convert(net, guide_scale=0.0, example_inputs=odd)
    assert_same(run(net, odd), run(converted, odd))


@pytest.mark.parametrize(("stride", "size"), [(2, 4), (4, 8), (3, 5), (3, 6)])
@pytest.mark.parametrize("groups", [1, 3])
def test_bilinear_transposed_convolutions_are_known(stride, size, groups):
    fits = (size - stride) % 2 == 0
    layer = bilinear(3, stride, size, groups=groups)
    assert is_bilinear(layer) == fits
    changed = copy.deepcopy(layer)
    changed.weight[0, 0, 0, 0] += 0.1
    assert not is_bilinear(changed)
    assert not is_bilinear(bilinear(3, stride, size, groups=groups, padding=0))
    assert not is_bilinear(bilinear(3, stride, size, groups=groups, output_padding=1))


# --- what is computed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("target", [*ALIASES[:4], "resize", "up", "transposed"])
def test_identical_where_k_is_1(net, target, training):
    net.train(training)
    converted = convert(net, [target], guide_scale=0.0)
    assert isinstance(converted, Net)
    assert set(converted.state_dict()) == set(net.state_dict())
    assert_same(run(net), run(converted))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("target", ALIASES[:4])
def test_each_target_alone_changes(net, target, training):
    """The right call is swapped, in training too, where another comes before it."""
    net.train(training)
    converted = convert(net, [target])
    (layer,) = swapped_layers(converted).values()
    sizes = []
    layer.register_forward_hook(lambda layer, given, out: sizes.append((given[0].shape[-2:], out.shape[-2:])))
    out = run(converted)
    coarse, fine = {r.alias: (r.input_size, r.output_size) for r in hotswap.inspect(net, IMAGE).resizes}[target]
    assert sizes[0] == (coarse, fine)
    assert len(sizes) == (2 if target in ("resize_1", "resize_2") else 1)  # block is called twice
    assert any((out[name] - value).abs().max() > 1e-4 for name, value in run(net).items())


def test_edges_follow_the_guide():
    """A coarse mask of a disc, guided by its picture, comes out sharper than bilinear."""

    class Mask(nn.Module):
        def forward(self, image):
            coarse = F.avg_pool2d(image, 8)
            return F.interpolate(coarse, scale_factor=8, mode="bilinear")

    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    image = ((x - 30) ** 2 + (y - 35) ** 2 < 400).float()[None, None]
    converted = hotswap.convert(Mask(), "resize", calibrate_on=image, deviation=0.2, example_inputs=image)
    before, after = ((model(image) - image).abs().mean() for model in (Mask(), converted))
    assert after < 0.5 * before


def test_footprint_of_4_guides_nearest_and_is_smoother(net):
    converted = convert(net, ["near"], footprint=4, guide_scale=0.0)
    out, plain = run(converted)["near"], run(net)["near"]
    assert out.shape == plain.shape
    assert (out - plain).abs().max() > 1e-3
    assert hotswap.status(converted).plan.resizes[0].footprint == 4


def test_guide_of_several_sources_and_by_target(net):
    guides = {"resize_1": ["input", "a"], "resize_*": "a", "transposed": "input", "block.conv": "b"}
    converted = convert(net, ["resize_1", "resize_2", "transposed", "block.conv"], guides)
    plan = hotswap.status(converted).plan
    assert [resize.guide for resize in plan.resizes] == [("input", "a"), ("a",), ("input",)]
    assert plan.swaps[0].guide == ("b",)
    scales = {"resize_*": 0.5, "resize_2": 0.25, "transposed": 1.0, "block.conv": 2.0}
    made = hotswap.plan(
        net, ["resize_1", "resize_2", "transposed", "block.conv"], guides, guide_scale=scales, example_inputs=IMAGE
    )
    assert [resize.guide_scale for resize in made.resizes] == [0.5, 0.25, 1.0]
    assert made.swaps[0].guide_scale == 2.0


def test_the_activation_after_a_module_guides_before_it_is_overwritten(net, way):
    class Overwrites(Net):
        def forward(self, image):
            a = F.relu(self.a(image))
            kept = a + 0
            a *= 0
            return {"up": self.up(self.b(kept))}

    plain = Overwrites().eval()
    plain.load_state_dict(net.state_dict())
    out = run(convert(plain, ["up"], "a"))["up"]
    # Hooks cannot catch an activation that is a function, and say so.
    a = net.a(IMAGE)
    expected = hotswap_reference(net.b(F.relu(a)), a if way == "hooks" else F.relu(a), 2.0)
    torch.testing.assert_close(out, expected)


def hotswap_reference(x, guide, scale):
    import pac_ops

    return pac_ops.pacresize2d(x, guide, scale_factor=2.0, scale=scale)


def test_gradients_reach_input_guide_and_scale(net):
    converted = convert(net, learn_scale=True).train()
    out = converted(IMAGE)
    sum(x.square().sum() for x in out.values()).backward()
    scales = [p for name, p in converted.named_parameters() if name.endswith("guide_log_scale")]
    assert len(scales) == 4
    assert all(
        p.grad is not None and p.grad.any() for p in [*scales, converted.a.weight, converted.block.conv.weight]
    )


def test_another_size_that_is_no_enlargement_is_left_plain():
    class ToSize(nn.Module):
        def forward(self, image, size=20):
            return F.interpolate(F.avg_pool2d(image, 4), size=(20, 20), mode="bilinear")

    example = torch.rand(1, 3, 32, 32)
    converted = hotswap.convert(ToSize(), "resize", guide_scale=2.0, example_inputs=example)
    large = torch.rand(1, 3, 120, 120)  # of which 30 x 30 are left
    assert torch.equal(converted(large), ToSize()(large))


# --- beside convolutions, and afterwards --------------------------------------------------------------------


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


@pytest.mark.parametrize("targets", ["resize", ["mix", "resize_2"]], ids=str)
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
    swapped = hotswap.convert(net, "resize", "input", guide_scale=4.0, example_inputs=x)
    torch.testing.assert_close(swapped(x), net(x), rtol=0, atol=0)
    expected = pac_ops.pacresize2d(net(x), x, scale=4.0)
    torch.testing.assert_close(swapped.eval()(x), expected)
    assert not torch.allclose(expected, net.eval()(x), atol=1e-3)


def test_another_call_in_training_is_refused_where_code_is_rewritten(way):
    net, x = InEvaluation("another"), torch.rand(1, 3, 8, 10)
    if way == "fx":
        with pytest.raises(HotswapError, match="makes in evaluation, and in training it makes another, which would"):
            hotswap.convert(net, "resize", "input", example_inputs=x)
    assert hotswap.status(net).plan is None


def test_a_part_that_cannot_be_opened_is_left_to_hooks():
    net = Unpacking().eval()
    traced = run(convert(copy.deepcopy(net), "resize"))
    net.encoder.register_forward_hook(lambda *_: None)
    converted = convert(net, "resize")
    assert "enlargements not by fx: " in str(hotswap.status(converted))
    assert_same(run(converted), traced)


def test_mixed_with_convolutions(net):
    converted = convert(net, ["resize", "block.conv"], {"resize": "input", "block.conv": "b"}, guide_scale=0.0)
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
    converted = convert(net, ["resize", "block.conv"], {"resize": "input", "block.conv": "b"}, **options)
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
        ({"footprint": 3}, "footprint must be one of 2, 4, got 3"),
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


@pytest.mark.parametrize("factor", [None, 2.5, (2, 2.5)])
def test_export_with_dynamic_height_and_width(factor):
    image, auto = torch.rand(2, 3, 28, 31), torch.export.Dim.AUTO
    converted = convert(Sized(factor).eval(), "resize", example_inputs=image)
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


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "guide", "message"),
    [
        (["resize_9"], "input", "target 'resize_9' is none of the network's resizes; closest: resize_1"),
        (["near"], "input", "target 'near' cannot be swapped: mode 'nearest' reads one coarse pixel.*footprint=4"),
        (["resize_5"], "input", "target 'resize_5' cannot be swapped: mode 'nearest'"),
        (["transposed"], "a", r"guide 'a' of 12 x 20 is coarser than the output 24 x 40 .*\"input\" is fine enough"),
        (["resize_1"], "aa", "guide 'aa' is no module path or alias of this network; closest: a"),
        (["resize_1"], "near", "guide 'near'(, which did not run before it| is computed after target)"),
        (["resize_1"], [], "guide must name at least one source"),
        (["resize_1"], {"resize_2": "input"}, "must have a key for target resize_1|which is none of the targets"),
        (["resize_1"], {"resize_1": "input", "conv1_1": "a"}, "guide has 'conv1_1', which is none of the targets"),
    ],
    ids=str,
)
def test_refusals_change_nothing(net, targets, guide, message):
    before = copy.deepcopy(net)
    with pytest.raises(HotswapError, match=message):
        hotswap.convert(net, targets, guide, example_inputs=IMAGE, inplace=True)
    assert [type(m) for m in net.modules()] == [type(m) for m in before.modules()]
    assert_same(run(net), run(before), rtol=0, atol=0)


def test_a_failure_among_the_convolutions_leaves_the_enlargements_plain(net):
    with pytest.raises(HotswapError, match=r"guide .*near.* is computed after target"):
        convert(net, ["resize_1", "block.conv"], {"resize_1": "input", "block.conv": "near"}, inplace=True)
    assert [type(m) for m in net.modules()] == [type(m) for m in Net().modules()]


def test_trainable_bilinear_weights_are_refused(net):
    net.transposed.requires_grad_(True)
    with pytest.raises(HotswapError, match=r"can be trained, which a swap would end; freeze them"):
        convert(net, ["transposed"])


def test_nothing_fine_enough_is_said():
    class Super(nn.Module):
        def forward(self, image):
            return F.interpolate(image, scale_factor=4, mode="bilinear")

    with pytest.raises(HotswapError, match="where nothing before it is as fine as its output of 96 x 160"):
        hotswap.convert(Super(), "resize", example_inputs=IMAGE)
    with pytest.raises(HotswapError, match="target 'resize_1' cannot be swapped: nothing before it is as fine"):
        hotswap.convert(Super(), "resize_1", example_inputs=IMAGE)


class Detecting(nn.Module):
    """Given a list, as detection networks are; enlarges the image itself, which nothing can guide."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.last = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, images):
        image = F.interpolate(images[0][None], scale_factor=2, mode="bilinear")
        fine = torch.relu(self.stem(image))
        return self.last(self.up(torch.tanh(self.down(fine))) + fine)


def test_what_nothing_can_guide_is_passed_over_and_what_is_fine_enough_is_said():
    net, images = Detecting().eval(), ([IMAGE[0]],)
    with pytest.raises(HotswapError, match="guide 'input' must give .*; 'stem' is fine enough"):
        hotswap.convert(net, "resize", "input", example_inputs=images)
    converted = hotswap.convert(net, "resize", "stem", example_inputs=images)
    plan = hotswap.status(converted).plan
    assert [resize.target for resize in plan.resizes] == ["up"]  # nor the last one, which enlarges beyond all others
    assert "'resize' also matched 2 that cannot be swapped" in plan.notes[0]
    assert [info.automatic for info in hotswap.inspect(net, images).resizes] == [False, True, False]


class Positions(nn.Module):
    """A position embedding that is enlarged to the image's size, and a canvas that the image is drawn on."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.rand(1, 16, 4))  # of 4 x 4 patches
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, image):
        x = torch.relu_(self.conv(image))
        grid = self.positions.reshape(1, 4, 4, 4).permute(0, 3, 1, 2)
        x = x + F.interpolate(grid, size=x.shape[2:], mode="bilinear")
        canvas = torch.zeros(*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2)
        canvas[:, :, 1:-1, 1:-1] = x
        return F.interpolate(canvas, scale_factor=2, mode="bilinear")


def test_position_embeddings_are_not_guided():
    # One for all images of a batch, where guides are one for each.
    net, images = Positions().eval(), torch.rand(3, 3, 16, 16)
    with pytest.raises(
        HotswapError, match="'resize_1' cannot be swapped: what it enlarges is the same for every image"
    ):
        hotswap.convert(net, "resize_1", example_inputs=images[:1])
    converted = hotswap.convert(net, "resize", guide_scale=0.0, example_inputs=images[:1])
    assert [resize.target_alias for resize in hotswap.status(converted).plan.resizes] == ["resize_2"]
    torch.testing.assert_close(run(converted, images), run(net, images))


def test_a_guided_layer_called_without_its_guide_says_so(net):
    with pytest.raises(HotswapError, match="was called without its guide"):
        convert(net).up(torch.rand(1, 4, 3, 3))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("first", ["convolutions", "enlargements", "some of each"])
def test_more_targets_later(net, first, method, inplace):
    convolutions, options = ["b"], {"learn_scale": True, "method": method}
    steps = {
        "convolutions": (convolutions, EVERY),
        "enlargements": (EVERY, convolutions),
        "some of each": (["resize_1", *convolutions], EVERY),
    }[first]
    once = convert(net, steps[0], **options)
    learned = [p for name, p in once.named_parameters() if "guide_log_scale" in name]
    with torch.no_grad():
        for p in learned:
            p.add_(0.1)
    before = run(once)
    twice = convert(once, steps[1], inplace=inplace, **options)
    assert (twice is once) == inplace
    if inplace:
        assert {id(p) for p in learned} <= {id(p) for p in twice.parameters()}
    else:
        assert_same(run(once), before)
    fresh = convert(net, [*EVERY, *convolutions], **options)
    fresh.load_state_dict(twice.state_dict())
    assert_same(run(twice), run(fresh))
    assert_same(run(hotswap.revert(twice)), run(net), rtol=0, atol=0)
    assert type(hotswap.revert(twice)) is type(net)


def test_what_is_guided_already_is_not_guided_again(net):
    with pytest.raises(HotswapError, match="swapped already .*name others"):
        convert(convert(net))


def test_resize_says_which_alias_an_enlargement_by_less_than_2_has():
    class By(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.conv, self.factor = nn.Conv2d(3, 4, 3, stride=2, padding=1), factor

        def forward(self, x):
            return F.interpolate(self.conv(x), scale_factor=self.factor, mode="bilinear")

    with pytest.raises(hotswap.HotswapError) as caught:
        hotswap.convert(By(1.7), "resize", "input", example_inputs=IMAGE)
    said = (
        'no enlargement by 2 or more along both axes; name one by less by its alias: "resize_1" (12 x 20 to 20 x 34)'
    )
    assert said in str(caught.value)
    hotswap.convert(By(1.7), "resize_1", "input", example_inputs=IMAGE)  # which works
    with pytest.raises(hotswap.HotswapError, match="matched no convolution or enlargement"):
        hotswap.convert(By(0.5), "resize", "input", example_inputs=IMAGE)
