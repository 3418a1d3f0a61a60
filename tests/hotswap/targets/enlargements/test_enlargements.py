"""Enlargements as targets: found, guided, identical where K = 1, measured, stored, undone and refused."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from enlarging_nets import ALIASES, IMAGE, Net, assert_same, bilinear, convert, run
from torch import nn

import hotswap
from hotswap.measure.compare import swapped_layers
from hotswap.targets.enlargement import is_bilinear

# --- what is found ------------------------------------------------------------------------------------------


def test_inspect_lists_resizings_in_the_order_of_their_calls(net):
    found = hotswap.inspect(net, IMAGE)
    listed = [(r.alias, r.path, r.call, r.mode, r.input_size, r.output_size) for r in found.resizes]
    assert listed == [
        ("resize_1", "block", 0, "bilinear", (3, 5), (6, 10)),
        ("resize_2", "block", 1, "bilinear", (6, 10), (12, 20)),
        ("resize_3", "up", None, "bilinear", (6, 10), (12, 20)),
        ("resize_4", "transposed", None, "transposed", (12, 20), (24, 40)),
        ("resize_5", "near", None, "nearest", (3, 5), (24, 40)),
    ]
    chosen = [(r.factor, r.place, r.automatic) for r in found.resizes]
    assert chosen == [
        (2, "features: block.conv follows", False),
        (2, "features: block.conv follows", False),
        (4, "scores", True),  # a ladder with the next
        (4, "scores", True),
        (8, "scores", False),
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
    said = f"swapped already: guide input, scale 12, deviation {swaps['resize_1'].deviation:.3g}"
    assert found.resizes[0].why_no_target == said
    assert [r.automatic for r in found.resizes] == [False, False, False, True, False]
    json.dumps(found.to_dict())


def test_odd_sizes_count_as_halved(net):
    odd = torch.rand(1, 3, 27, 45)
    sizes = {r.alias: (r.input_size, r.output_size, r.automatic) for r in hotswap.inspect(net, odd).resizes}
    assert sizes["resize_1"] == ((4, 6), (7, 12), False)
    assert sizes["resize_3"] == ((7, 12), (14, 24), True)
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
@pytest.mark.parametrize("target", [*ALIASES[:4], "resize_*", "up", "transposed"])
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
    converted = hotswap.convert(Mask(), "resize_*", calibrate_on=image, deviation=0.2, example_inputs=image)
    before, after = ((model(image) - image).abs().mean() for model in (Mask(), converted))
    assert after < 0.5 * before


def test_footprint_of_4_guides_nearest_and_is_smoother(net):
    converted = convert(net, ["near"], footprint=4, guide_scale=0.0)
    out, plain = run(converted)["near"], run(net)["near"]
    assert out.shape == plain.shape
    assert (out - plain).abs().max() > 1e-3
    assert hotswap.status(converted).plan.resizes[0].footprint == 4


@pytest.mark.parametrize(
    ("channels", "bounded", "expected"), [(2, "auto", True), (5, "auto", False), (5, True, True)]
)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_bounds_hold_for_nearest_enlargements_too(mode, channels, bounded, expected):
    net = nn.Sequential(nn.Conv2d(3, channels, 3, 4, 1), nn.Upsample(scale_factor=4, mode=mode)).eval()
    options = {"footprint": 4, "guide_scale": 8.0, "bounded": bounded, "example_inputs": IMAGE}
    converted = hotswap.convert(net, "1", "input", **options)
    assert hotswap.status(converted).plan.resizes[0].bounded is expected
    coarse = net[0](IMAGE)
    least, most = -F.max_pool2d(-coarse, 3, 1, 1), F.max_pool2d(coarse, 3, 1, 1)  # of all that may lie around a pixel
    least, most = (F.interpolate(x, scale_factor=4) for x in (least, most))
    out = converted(IMAGE)
    assert bool(((out >= least - 1e-6) & (out <= most + 1e-6)).all()) is expected


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
    out = run(convert(plain, ["up"], "a", footprint=2))["up"]
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
    converted = hotswap.convert(ToSize(), "resize_*", guide_scale=2.0, example_inputs=example)
    large = torch.rand(1, 3, 120, 120)  # of which 30 x 30 are left
    assert torch.equal(converted(large), ToSize()(large))
