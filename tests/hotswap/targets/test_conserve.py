"""Kernels other than the paper's, and what keeps responses from shrinking: spelt out, and through every way of use."""

import copy
import json

import networks
import pytest
import torch
import torch.nn.functional as F
from networks import conv
from swap_by_hand import close
from torch import nn

import hotswap
from hotswap.targets.plan import Plan
from pac_ops import pacconv2d, packernel2d

SCALE = 0.8
OPTIONS = [
    {},
    {"stride": 2},
    {"dilation": 2, "padding": 2},
    {"padding": "valid"},
    {"padding_mode": "reflect"},
    {"padding": (1, 3), "k": 5},
]


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vgg():
    torch.manual_seed(0)
    return networks.thin_vgg11().eval()


@pytest.fixture(scope="module")
def batches():
    return [torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(0))]


def convert(net, **keywords):
    keywords.setdefault("example_inputs", torch.empty(1, 3, 12, 10))
    keywords.setdefault("guide_scale", SCALE)
    return hotswap.convert(net.eval(), "target", "guide", **keywords)


def spelt_out(net, x, conserved, kernel_type="gaussian"):
    """networks.Plain, with its target's K, [B, 1, kh, kw, Ho, Wo], put through `conserved(K, valid taps)`."""
    target = net.target
    g = F.relu(net.guide(F.relu(net.stem(x))))
    guide = F.interpolate(SCALE * g, (6, 5), mode="bilinear", align_corners=False)
    y = net.pool(g)
    padding = target.padding if isinstance(target.padding, tuple) else (0, 0)
    valid = torch.ones_like(y[:1, :1])
    if target.padding_mode != "zeros":
        margin = (padding[1], padding[1], padding[0], padding[0])
        y, guide, valid = (F.pad(m, margin, mode=target.padding_mode) for m in (y, guide, valid))
        padding = (0, 0)
    sliding = (target.stride, padding, target.dilation)
    kernel, _ = packernel2d(
        guide, None, target.kernel_size, target.stride, padding, 0, target.dilation, kernel_type=kernel_type
    )
    taps = F.unfold(valid, target.kernel_size, target.dilation, padding, target.stride)
    valid = taps.view(1, 1, *target.kernel_size, *kernel.shape[4:])
    return net.head(F.relu(pacconv2d(y, conserved(kernel, valid), target.weight, target.bias, *sliding)))


def mean_kept(kernel, valid):
    total, count = ((m * valid).sum((0, 1, 4, 5), keepdim=True) for m in (kernel, valid.expand_as(kernel)))
    return kernel * count / total


def sum_kept(kernel, valid):
    return kernel * valid.sum((2, 3), keepdim=True) / (kernel * valid).sum((2, 3), keepdim=True)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mean_divides_each_tap_by_its_mean_on_the_data(options, image):
    net = networks.Plain(**options)
    converted = convert(net, conserve="mean", calibrate_on=image)
    close(converted(image), spelt_out(net, image, mean_kept))
    (swap,) = hotswap.status(converted).plan.swaps
    assert swap.guide_scale == SCALE  # as given: only the means are measured
    kh, kw = net.target.kernel_size
    assert swap.tap_means[kh // 2 * kw + kw // 2] == 1
    assert all(0 < mean < 1 for i, mean in enumerate(swap.tap_means) if i != kh // 2 * kw + kw // 2)


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_window_keeps_the_sum_over_every_window(options, image):
    net = networks.Plain(**options)
    close(convert(net, conserve="window")(image), spelt_out(net, image, sum_kept))


@torch.no_grad()
@pytest.mark.parametrize(
    ("kernel", "at_zero"),
    [
        ("gaussian", 1.0),
        ("inv_0.2_-1_fixed", 0.2 + 100),
        ("inv_0.1_-0.5_asym_fixed", 0.1 + 10),
    ],
)
def test_kernels_are_those_of_pac_ops_with_1_at_distance_0(kernel, at_zero, image):
    net = networks.Plain()
    converted = convert(net, kernel=kernel)
    close(converted(image), spelt_out(net, image, lambda k, _: k / at_zero, kernel))
    close(convert(net, kernel=kernel, guide_scale=0)(image), net(image))
    hotswap.calibrate(converted, image, deviation=0.4)
    (check,) = hotswap.verify(converted, image).targets
    assert check.deviation == pytest.approx(0.4, rel=1e-3)
    assert (kernel in str(hotswap.status(converted))) == (kernel != "gaussian")


def test_taps_on_a_flat_guide_are_not_scaled_up_where_only_some_images_are_flat(image):
    """The means are over all data, so a window of equal guide counts for more than it did: the price of `mean`."""
    net = networks.Plain()
    both = torch.cat([image, torch.zeros_like(image)])
    means = hotswap.status(convert(net, conserve="mean", calibrate_on=both)).plan.swaps[0].tap_means
    alone = hotswap.status(convert(net, conserve="mean", calibrate_on=image)).plan.swaps[0].tap_means
    # biases make the guide of a zero image constant but for the borders
    assert all(a < b for a, b in zip(alone, means, strict=True) if a != 1)


def test_one_call_converts_and_calibrates(vgg, batches):
    once = hotswap.convert(vgg, calibrate_on=batches, deviation=0.25)
    twice = hotswap.convert(vgg)
    report = hotswap.calibrate(twice, iter(batches), deviation=0.25)  # data that can be read once
    assert hotswap.status(once) == hotswap.status(twice)
    assert torch.equal(once(batches[0]), twice(batches[0]))
    check = hotswap.verify(once, batches)
    assert report.drift == pytest.approx(check.output_relative) == hotswap.status(once).plan.drift
    assert [t.deviation for t in report.targets] == pytest.approx([t.deviation for t in check.targets])
    assert all(t.deviation == pytest.approx(0.25, rel=1e-3) for t in check.targets)
    assert json.loads(json.dumps(report.to_dict()))["conserve"] == "mean"
    for text in (str(report), str(hotswap.status(once)), str(check)):
        assert "drift (relative RMS change of the outputs)" in text


def test_keeping_the_mean_moves_responses_less(image):
    """Of sums of positive terms, which K < 1 shrinks."""
    net = networks.Plain()
    net.target.weight.data.abs_()
    net.target.bias.data.zero_()
    net.head.bias.data.zero_()
    drift = {c: hotswap.calibrate(convert(net), image, conserve=c).drift for c in (None, "mean", "window")}
    assert drift["mean"] < 0.7 * drift[None]
    assert drift["window"] < 0.7 * drift[None]


def test_scales_by_target(vgg, batches):
    scales = {"conv[34]_*": 0.5, "conv4_2": 0.25, "18": 2}
    plan = hotswap.plan(vgg, guide_scale=scales)
    assert [s.guide_scale for s in plan.swaps] == [0.5, 0.25, 2.0]
    converted = hotswap.convert(vgg, guide_scale=scales, calibrate_on=batches)
    assert [s.guide_scale for s in hotswap.status(converted).plan.swaps] == [0.5, 0.25, 2.0]


def test_guides_computed_from_targets_settle():
    """Each target guides the next, so its scale changes the next one's guide."""
    torch.manual_seed(0)
    net = nn.Sequential(*(conv(3 if i == 0 else 8) for i in range(4))).eval()
    x = torch.randn(2, 3, 24, 24)
    guides = {"1": "0", "2": "1", "3": "2"}
    options = {"after_activation": False, "example_inputs": torch.empty(1, 3, 24, 24)}
    for conserve in ("mean", "window"):
        converted = hotswap.convert(net, list(guides), guides, **options)
        hotswap.calibrate(converted, x, deviation=0.5, conserve=conserve)
        for check in hotswap.verify(converted, x).targets:
            assert check.deviation == pytest.approx(0.5, rel=0.01)


@torch.no_grad()
@pytest.mark.parametrize("conserve", ["mean", "window"])
def test_the_weights_stay_the_networks_own(conserve, vgg, batches, tmp_path):
    x = batches[0]
    converted = hotswap.convert(vgg, conserve=conserve, calibrate_on=batches)
    assert list(converted.state_dict()) == list(vgg.state_dict())
    assert all(torch.equal(v, vgg.state_dict()[k]) for k, v in converted.state_dict().items())
    reverted = hotswap.revert(converted)
    assert torch.equal(reverted(x), vgg(x))
    assert repr(reverted) == repr(vgg)
    assert [sorted(m.__dict__) for m in reverted.modules()] == [sorted(m.__dict__) for m in vgg.modules()]
    assert not any("tap_factors" in name for name, _ in reverted.named_buffers())

    twin = copy.deepcopy(converted)
    assert torch.equal(twin(x), converted(x))
    assert f"conserve={conserve}" in repr(twin)
    plan = hotswap.status(converted).plan
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    for suffix in ("safetensors", "pt"):
        hotswap.save(converted, tmp_path / f"m.{suffix}")
        loaded = hotswap.load(tmp_path / f"m.{suffix}", copy.deepcopy(vgg))
        assert hotswap.status(loaded) == hotswap.status(converted)
        assert torch.equal(loaded(x), converted(x))


@torch.no_grad()
def test_means_stay_exact_through_half_precision(image):
    converted = convert(networks.Plain(), conserve="mean", calibrate_on=image)
    expected, plan = converted(image), hotswap.status(converted).plan
    half = copy.deepcopy(converted).bfloat16()
    assert half.target.tap_factors.dtype is torch.float32
    close(half(image.bfloat16()).float(), half(image.bfloat16()).float())
    assert hotswap.status(half).plan == plan
    assert copy.deepcopy(converted).double().target.tap_factors.dtype is torch.float64
    close(half.float().target.tap_factors, converted.target.tap_factors)
    emptied = copy.deepcopy(converted).to("meta").to_empty(device="cpu")
    emptied.load_state_dict(converted.state_dict())
    assert torch.equal(emptied(image), expected)


@torch.no_grad()
@pytest.mark.parametrize("conserve", ["mean", "window"])
def test_compile_and_export(conserve, image):
    converted = convert(networks.Plain(), conserve=conserve, calibrate_on=image)
    torch._dynamo.reset()
    close(torch.compile(converted, fullgraph=True, backend="aot_eager")(image), converted(image))
    auto = torch.export.Dim.AUTO
    program = torch.export.export(converted, (image,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    larger = torch.randn(3, 3, 16, 20)
    close(program.module()(larger), converted(larger))


def test_training_with_what_is_conserved(image):
    for conserve in ("mean", "window"):
        converted = convert(networks.Plain(), conserve=conserve, calibrate_on=image, learn_scale=True)
        converted.train()(image).square().sum().backward()
        assert converted.target.guide_log_scale.grad.abs() > 0
        assert all(p.grad.abs().max() > 0 for p in converted.parameters())


def test_a_scale_set_by_hand_forgets_what_was_measured(vgg, batches):
    converted = hotswap.convert(vgg, calibrate_on=batches)
    plan = hotswap.status(converted).plan
    assert plan.drift > 0
    assert all(s.deviation == pytest.approx(0.3, rel=1e-3) for s in plan.swaps)
    converted[8].guide_scale = 0.5
    plan = hotswap.status(converted).plan
    assert [s.deviation is None for s in plan.swaps] == [True, False, False]
    assert plan.drift is None


def test_status_warns_of_swaps_that_were_measured_to_be_inert(vgg, batches):
    converted = hotswap.convert(vgg, guide_scale=1e-6, calibrate_on=batches)
    status = hotswap.status(converted)
    assert "3 of 3 swaps are inert" in str(status)
    assert json.loads(json.dumps(status.to_dict()))["warnings"] == list(status.warnings)
    assert hotswap.status(hotswap.convert(vgg)).warnings == ()  # nobody knows yet


@pytest.mark.parametrize("learn_scale", [False, True])
def test_a_calibration_that_fails_changes_nothing(learn_scale, vgg, batches):
    converted = hotswap.convert(vgg, conserve="window", guide_scale=0.3, learn_scale=learn_scale)
    before, state = hotswap.status(converted), copy.deepcopy(converted.state_dict())
    flat = torch.zeros(1, 3, 48, 40)
    for data, message in (
        (flat, "constant around .* of taps"),
        (flat + torch.nan, "not finite"),
        ([batches[0], 3], "got int"),
        ([], "at least one"),
    ):
        with pytest.raises(hotswap.HotswapError, match=message):
            hotswap.calibrate(converted, data, deviation=0.9)
        assert hotswap.status(converted) == before
        assert all(torch.equal(v, state[k]) for k, v in converted.state_dict().items())
        net = copy.deepcopy(vgg)
        with pytest.raises(hotswap.HotswapError, match=message):
            hotswap.convert(net, calibrate_on=data, deviation=0.9, inplace=True)
        assert hotswap.status(net).plan is None
        assert [type(m) for m in net.modules()] == [type(m) for m in vgg.modules()]
    with pytest.raises(hotswap.HotswapError, match=r"could not be run on fake inputs \[1, 4, 48, 40\]"):
        hotswap.convert(vgg, calibrate_on=torch.zeros(1, 4, 48, 40))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"guide_scale": "auto"}, 'guide_scale="auto" is measured on data: give convert some as calibrate_on'),
        ({"conserve": "mean"}, 'conserve="mean" is measured on data'),
        ({"conserve": "sum"}, "conserve must be one of mean, window or None, got 'sum'"),
        (
            {"conserve": "sum", "calibrate_on": torch.full((1, 3, 48, 40), 0.5)},
            "conserve must be one of mean, window",
        ),
        (
            {"deviation": 1, "calibrate_on": torch.full((1, 3, 48, 40), 0.5)},
            "deviation must be between 0 and 1, got 1",
        ),
        ({"kernel": "box"}, "kernel must be .gaussian. or .*got 'box'"),
        ({"kernel": "inv_0.2_1"}, "learns its alpha and lambda.* use 'inv_0.2_1_fixed'"),
        ({"kernel": "inv_-1_1_fixed"}, "must be greater than 0 at distance 0, and is -0.99"),
        ({"kernel": "inv_0.9_2_fixed", "calibrate_on": torch.full((1, 3, 48, 40), 0.5)}, "choose another kernel"),
        ({"guide_scale": {"8": 1.0}}, "guide_scale must have a key for target conv4_2"),
        ({"guide_scale": {"*": "auto"}}, "guide_scale must be a number >= 0, a mapping"),
    ],
    ids=str,
)
def test_refusals(vgg, keywords, message):
    with pytest.raises(hotswap.HotswapError, match=message) as error:
        hotswap.convert(vgg, **keywords)
    assert "\n" not in str(error.value)


def test_vanishing_kernels_are_not_divided_by(image):
    with pytest.raises(hotswap.HotswapError, match="too small to be conserved; ask for a smaller deviation"):
        convert(networks.Plain(), guide_scale=1e9, conserve="mean", calibrate_on=image)
