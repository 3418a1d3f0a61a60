"""Scores refined behind a network: exact at the start, in whatever the network returns, and learned."""

import collections
import copy
import dataclasses
import json
import typing

import pytest
import torch
import torch.nn.functional as F
from networks import conv
from saving import same
from torch import nn

import hotswap
from hotswap.checkpoint.read import read
from hotswap.errors import HotswapError
from hotswap.network.nested import at, replaced
from hotswap.rates import parameters_of
from pac_ops import PacCRF, srgb_to_lab

IMAGE = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(3))
LAB = hotswap.GuideSpace("lab", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
KINDS = {"layers": "output", "crf": hotswap.Output("crf", dilations=(2,))}


@dataclasses.dataclass
class Answer:
    """As networks of other libraries return it."""

    loss: torch.Tensor | None
    logits: torch.Tensor


class Pair(typing.NamedTuple):
    """As older code returns it."""

    features: torch.Tensor | None
    logits: torch.Tensor


CONTAINERS = {
    "tensor": (lambda x: x, ""),
    "dict": (lambda x: {"aux": x[:, :2], "out": x}, "['out']"),
    "ordered": (lambda x: collections.OrderedDict(out=x, aux=x.sum()), "['out']"),
    "dataclass": (lambda x: Answer(None, x), ".logits"),
    "tuple": (lambda x: (x, "more"), "[0]"),
    "named tuple": (lambda x: Pair(None, x), "[1]"),
    "nested": (lambda x: {"a": [x.sum(), {"b": x}]}, "['a'][1]['b']"),
}


class Segmenter(nn.Module):
    """Scores of 4 classes at the image's size, or at a smaller one."""

    def __init__(self, container="tensor", factor=1, classes=4):
        super().__init__()
        self.guide, self.target, self.head = conv(3), conv(), nn.Conv2d(8, classes, 1)
        self.container, self.factor = container, factor

    def forward(self, x):
        scores = self.head(F.relu(self.target(F.relu(self.guide(x)))))
        return CONTAINERS[self.container][0](F.avg_pool2d(scores, self.factor))


def segmenter(*args, **kwargs):
    torch.manual_seed(0)
    return Segmenter(*args, **kwargs).eval()


def refined(net, targets="output", **options):
    return hotswap.convert(net, targets, **({"calibrate_on": [IMAGE]} | options))


def opened(model, value=0.5):
    nn.init.constant_(model._hotswap_output.gate, value)
    return model


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_start_is_exact_in_whatever_the_network_returns(container):
    net, where = segmenter(container), CONTAINERS[container][1]
    for targets in KINDS.values():
        swapped = refined(net, targets)
        out, plain = swapped(IMAGE), net(IMAGE)
        assert type(out) is type(plain)
        assert torch.equal(at(out, where), at(plain, where))
        at(out, where).square().sum().backward()
        assert swapped._hotswap_output.gate.grad.abs().min() > 0
        changed = at(opened(swapped)(IMAGE), where)
        assert (changed - at(plain, where)).abs().max() > 1e-3
        assert torch.equal(at(hotswap.revert(swapped)(IMAGE), where), at(plain, where))


def test_networks_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[8, 8], num_attention_heads=[1, 1], sr_ratios=[1, 1],
        patch_sizes=[3, 3], strides=[2, 2], mlp_ratios=[1, 1], decoder_hidden_size=8, num_labels=3,
    )  # fmt: skip
    net = transformers.SegformerForSemanticSegmentation(config).eval()
    image = torch.rand(1, 3, 32, 32)
    swapped = refined(net, calibrate_on=[image])
    assert hotswap.status(swapped).plan.output.where == "['logits']"
    assert torch.equal(swapped(pixel_values=image).logits, net(image).logits)
    assert not torch.equal(opened(swapped)(image)["logits"], net(image).logits)


@pytest.mark.parametrize("factor", [1, 2])
def test_layers_by_hand_in_float64(factor):
    net = segmenter(factor=factor)
    swapped = opened(refined(net, hotswap.Output(windows=(3, 5))), 0.3).double()
    layer, image = swapped._hotswap_output, IMAGE.double()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.05 * torch.randn_like(p))
    x = net.double()(image)
    lab = srgb_to_lab(F.avg_pool2d(image, factor))
    pad = torch.zeros(2, 13, *lab.shape[2:], dtype=torch.float64)
    f = 12 * torch.cat([lab, pad], 1) + layer.last(F.relu(layer.first(lab)))
    y = x
    for k, weight in zip((3, 5), layer.filters, strict=True):
        taps = [F.pad(t, (k // 2,) * 4).unfold(2, k, 1).unfold(3, k, 1) for t in (f, y, torch.ones_like(y[:, :1]))]
        kernel = (-0.5 * (taps[0] - f[..., None, None]).square().sum(1, keepdim=True)).exp() * taps[2]
        kernel = kernel / kernel.sum((4, 5), keepdim=True)
        y = (kernel * weight[0, 0] * taps[1]).sum((4, 5))
    torch.testing.assert_close(swapped(image), x + layer.gate * (y - x))


def test_a_crf_is_pac_ops_crf():
    net = segmenter()
    swapped = opened(refined(net, hotswap.Output("crf", dilations=(2,), steps=2)), 1.0)
    crf = PacCRF(4, 2, perturbed_init=False, pairwise_kernels=[{"kernel_size": 5, "dilation": 2}])
    torch.testing.assert_close(swapped(IMAGE), crf(net(IMAGE), 12 * srgb_to_lab(IMAGE)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_that_are_not_finite_stay_and_the_others_stay_finite(kind):
    swapped = refined(segmenter(), KINDS[kind])
    layer, scores = swapped._hotswap_output, torch.randn(2, 4, 12, 10)
    scores[:, 1], scores[0, 2, 5:] = -torch.inf, -torch.inf  # a class that cannot be, and one that cannot be there
    scores[1, 0, 0, 0] = torch.nan
    low = torch.where(scores.isfinite(), scores, scores.masked_fill(~scores.isfinite(), 0).amin((1, 2, 3), True))
    assert torch.equal(layer(scores, IMAGE).nan_to_num(), scores.nan_to_num())
    out = opened(swapped)._hotswap_output(scores.requires_grad_(), IMAGE)
    kept = ~scores.isfinite()
    assert torch.equal(out[kept].nan_to_num(), scores[kept].nan_to_num())
    assert bool(out[~kept].isfinite().all())
    assert not torch.equal(out[~kept], scores[~kept])
    out[~kept].sum().backward()
    assert bool(scores.grad.isfinite().all())
    torch.testing.assert_close(out[~kept], layer(low, IMAGE)[~kept])


@pytest.mark.parametrize("kind", KINDS)
def test_rates_of_parts_and_what_learns_when(kind):
    swapped = refined(segmenter(), KINDS[kind])
    groups = hotswap.parameter_groups(swapped, 0.01, {"refinement_guide": 10, "refinement": 2}, IMAGE)
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.02, 0.1])
    assert sum(len(group["params"]) for group in groups) == len(list(swapped.parameters()))
    names = parameters_of(swapped, "refinement", IMAGE)
    assert len(names) == len(list(swapped._hotswap_output.parameters()))
    optimiser, seen = torch.optim.SGD(groups), []
    for _ in range(2):
        optimiser.zero_grad()
        swapped(IMAGE).square().sum().backward()
        guide = parameters_of(swapped, "refinement_guide", IMAGE)
        seen.append(max(swapped.get_parameter(name).grad.abs().max().item() for name in guide) > 0)
        optimiser.step()
    assert seen == [False, True]  # the gate first


@pytest.mark.parametrize("kind", KINDS)
def test_saved_loaded_copied_applied(kind, tmp_path):
    net = segmenter("dict")
    for dtype in (torch.float32, torch.bfloat16):
        model, path, image = opened(refined(net, KINDS[kind])).to(dtype), tmp_path / "m.safetensors", IMAGE.to(dtype)
        hotswap.save(model, path)
        loaded = hotswap.load(path, net)
        assert same(loaded.state_dict(), model.state_dict())
        assert {*read(path).state_dict} == {*net.state_dict()}
        for again in (loaded, copy.deepcopy(model)):
            assert torch.equal(again(image)["out"], model(image)["out"])
        assert hotswap.verify(model, [image]).same_state
    status = hotswap.status(loaded)
    assert status == hotswap.status(model)
    assert f"learned beside the network's weights: {status.plan.output.added:,} parameters" in str(status)
    plan = hotswap.Plan.from_dict(json.loads(json.dumps(status.plan.to_dict())))
    assert plan == status.plan
    assert hotswap.apply(net, plan)._hotswap_output.gate.flatten().tolist() == [0.5] * 4
    assert list(hotswap.revert(model).state_dict()) == list(net.state_dict())
    assert not hotswap.revert(model)._forward_hooks


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_beside_swapped_convolutions_and_added_later(method):
    net = segmenter("dict")
    options = {"method": method, "gate": True}
    both = refined(net, ["target", "output"], guide="guide", **options)
    later = refined(hotswap.convert(net, "target", "guide", calibrate_on=[IMAGE], **options), "output")
    first = hotswap.convert(refined(net), "target", "guide", calibrate_on=[IMAGE], **options)
    for model in (both, later, first):
        assert torch.equal(model(IMAGE)["out"], net(IMAGE)["out"])
        assert len(model._forward_hooks_with_kwargs) >= 1
        plan = hotswap.status(model).plan
        assert [swap.target for swap in plan.swaps] == ["target"]
        assert plan.output.name == "output['out']"
        changed = opened(model)(IMAGE)["out"]
        assert not torch.equal(changed, net(IMAGE)["out"])
        assert torch.equal(hotswap.revert(model)(IMAGE)["out"], net(IMAGE)["out"])
    assert len(hotswap.verify(refined(net, ["target", "output"], guide="guide", gate=True), [IMAGE]).warnings) == 1


def test_compiled_exported_narrow_and_in_training():
    net = segmenter("dict")
    swapped = opened(refined(net))
    expected = swapped(IMAGE)["out"]
    torch._dynamo.reset()
    compiled = torch.compile(swapped, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(IMAGE)["out"], expected)
    torch.testing.assert_close(torch.export.export(swapped, (IMAGE,)).module()(IMAGE)["out"], expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = swapped(IMAGE)["out"]
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() < 0.1
    assert torch.equal(swapped.train()(IMAGE)["out"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_onnx(kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    swapped, path = opened(refined(segmenter(), KINDS[kind])), tmp_path / "net.onnx"
    hotswap.export(swapped, path, example_inputs=IMAGE)
    session = onnxruntime.InferenceSession(path)
    (out,) = session.run(None, {session.get_inputs()[0].name: IMAGE.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), swapped(IMAGE), rtol=1e-3, atol=1e-4)


def test_refusals():
    net = segmenter()
    with pytest.raises(HotswapError, match="nothing says how it is normalised"):
        hotswap.convert(net, "output", example_inputs=IMAGE)
    with pytest.raises(HotswapError, match='guide must be "auto" or "input" where only the output is a target'):
        refined(net, guide="guide")
    with pytest.raises(HotswapError, match="must name one refinement of the output, got 2"):
        refined(net, ["output", "output_crf"])
    with pytest.raises(HotswapError, match="the output is refined already"):
        refined(refined(net), "output_crf")
    with pytest.raises(HotswapError, match="must give a map"):
        refined(nn.Sequential(net, nn.Flatten()))
    for options, reason in (
        ({"kind": "x"}, "must be one of pac, crf, guided"),
        ({"halvings": 5}, "halvings must be between 1 and 4"),
        ({"windows": (4,)}, "windows must be odd numbers"),
        ({"dilations": ()}, "must be positive"),
        ({"guide_channels": 2}, "guide_channels must be between"),
        ({"guide_scale": float("nan")}, "guide_scale must be a number"),
        ({"channels": 2, "gate": (0.0,)}, "a finite number for each of 2 classes"),
    ):
        with pytest.raises(HotswapError, match=reason):
            hotswap.Output(**options)
    swapped = refined(segmenter("dict"))
    swapped.container = "tensor"
    with pytest.raises(HotswapError, match=r"gave scores as output\['out'\] when it was converted, and now a Tensor"):
        swapped(IMAGE)
    with pytest.raises(KeyError):
        replaced({"a": 1}, "['b']", 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deviation_by_number_sets_its_scale(kind, tmp_path):
    swapped = refined(segmenter(), KINDS[kind], guide_scale=None)
    layer = swapped._hotswap_output
    assert not hotswap.calibrate(swapped, [IMAGE]).targets  # the units of Lab are known
    assert layer.guide_scale == 12
    (found,) = hotswap.calibrate(swapped, [IMAGE], deviation=0.4).targets
    assert (found.path, found.scale_before, found.scale) == ("output", 12, layer.guide_scale)
    lab, deviations, counts = srgb_to_lab(IMAGE) * layer.guide_scale, 0.0, 0
    for window in layer.windows():  # by hand
        (k, _), (d, _) = window.kernel_size, window.dilation
        for y, x in [(y, x) for y in range(-(k // 2), k // 2 + 1) for x in range(-(k // 2), k // 2 + 1) if y or x]:
            rows, columns = max(0, 12 - abs(y * d)), max(0, 10 - abs(x * d))
            a = lab[:, :, max(0, y * d) :, max(0, x * d) :][:, :, :rows, :columns]
            b = lab[:, :, max(0, -y * d) :, max(0, -x * d) :][:, :, :rows, :columns]
            deviations += float((1 - (-0.5 * (a - b).square().sum(1)).exp()).sum())
            counts += 2 * rows * columns
    assert deviations / counts == pytest.approx(0.4, abs=1e-3)
    assert hotswap.status(swapped).plan.output.guide_scale == layer.guide_scale
    if kind == "crf":
        assert layer.scales.tolist() == pytest.approx([layer.guide_scale])
    hotswap.save(opened(swapped), tmp_path / "m.safetensors")
    assert torch.equal(hotswap.load(tmp_path / "m.safetensors", segmenter())(IMAGE), swapped(IMAGE))
    before = swapped(IMAGE)
    with pytest.raises(HotswapError, match="is one value all over these batches"):
        hotswap.calibrate(swapped, [torch.full((1, 3, 12, 10), 0.5)], deviation=0.2)
    assert torch.equal(swapped(IMAGE), before)


@pytest.mark.parametrize("target", ["output", "output_crf", "output_guided"])
@pytest.mark.parametrize("scale", [0, 3.5])
def test_a_scale_that_is_given_is_the_outputs(target, scale):
    net = segmenter()
    assert hotswap.status(refined(net, target, guide_scale=scale)).plan.output.guide_scale == scale
    assert hotswap.plan(net, target, guide_scale=scale, space=LAB, example_inputs=IMAGE).output.guide_scale == scale
    if target == "output_guided" and not scale:
        torch.testing.assert_close(refined(net, target, guide_scale=0)(IMAGE), net(IMAGE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide_scale": {"*": 2}}, "guide_scale must be a number where only the output is a target"),
        ({"guide_scale": -1}, "guide_scale must be a number >= 0"),
        ({"guide_scale": "big"}, "guide_scale must be a number >= 0"),
        ({"learn_scale": True}, "learn_scale must be False where only the output is a target"),
        ({"conserve": "window"}, "conserve must be None where only"),
        ({"resize": "area"}, "resize must be 'bilinear' where only"),
        ({"after_activation": False}, "after_activation must be True where only"),
        ({"footprint": 4}, "footprint must be 'auto' where only"),
        ({"bounded": True}, "bounded must be 'auto' where only"),
    ],
)
def test_what_would_do_nothing_to_an_output_is_refused(options, message):
    with pytest.raises(HotswapError, match=message):
        hotswap.plan(segmenter(), "output_guided", space=LAB, example_inputs=IMAGE, **options)
