"""The promises of `hotswap.convert`, over real architectures."""

import copy
import dataclasses

import networks
import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.segmentation.deeplabv3 import _deeplabv3_resnet

import hotswap
from hotswap.surgery.rewriting import CODE
from hotswap.targets.convolution import SwappedConv2d

FEW_CLASSES = {"num_classes": 7}


def deeplab():
    """torchvision's DeepLabV3 on a shallow ResNet: two blocks where the pattern of targets is to find several."""
    resnet = ResNet(Bottleneck, [1, 1, 1, 2], width_per_group=8, replace_stride_with_dilation=[False, True, True])
    return _deeplabv3_resnet(resnet, num_classes=5, aux=True)


NETWORKS = {
    "vgg16": (lambda: networks.thin_vgg16().features, ["conv3_3", "conv4_3", "conv5_3"], "conv2_2"),
    "resnet18": (lambda: torchvision.models.resnet18(**FEW_CLASSES), "auto", "auto"),
    "mobilenet_v3": (lambda: torchvision.models.mobilenet_v3_small(**FEW_CLASSES), "auto", "auto"),
    "deeplabv3": (deeplab, ["backbone.layer4.*.conv2", "classifier.1"], "backbone.layer1"),
    # Their fresh initialisation scales the last convolution of every block to nothing; undo that, to see a swap.
    "timm_resnet26d": (lambda: timm.create_model("resnet26d", zero_init_last=False, **FEW_CLASSES), "auto", "auto"),
    "timm_convnext": (lambda: timm.create_model("convnext_atto", ls_init_value=1.0, **FEW_CLASSES), "auto", "auto"),
}


@pytest.fixture(scope="module", params=list(NETWORKS))
def case(request):
    """A network, and what converts it."""
    make, targets, guide = NETWORKS[request.param]
    torch.manual_seed(0)
    plain = make().eval()
    example = torch.randn(1, 3, 64, 64)
    return plain, lambda **options: hotswap.convert(plain, targets, guide, example_inputs=example, **options)


@pytest.fixture(scope="module")
def converted(case):
    """What tests that change nothing share."""
    _, convert = case
    return convert(guide_scale=0.1)


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def values(output):
    return torch.cat([x.flatten() for x in (output.values() if isinstance(output, dict) else [output])])


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
def test_outputs_agree_and_the_plain_network_is_untouched(case, image):
    plain, convert = case
    before, keys = values(plain(image)), {k: v.clone() for k, v in plain.state_dict().items()}
    paper = convert()
    zero = convert(guide_scale=0)
    strong = convert(guide_scale=3.0)

    assert relative(values(zero(image)), before) < 1e-5  # float rounding alone
    assert relative(values(paper(image)), before) < 2**-9  # below what bf16 rounding would show
    assert relative(values(strong(image)), before) > 1e-3  # and the guide does steer

    assert torch.equal(values(plain(image)), before)
    assert not any(isinstance(m, SwappedConv2d) for m in plain.modules())
    for model in (paper, zero, strong):
        assert isinstance(model, type(plain))
        assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in keys.items()}
        assert list(model.state_dict()) == list(keys)
        plain.load_state_dict(model.state_dict(), strict=True)
        model.load_state_dict(keys, strict=True)


@torch.no_grad()
def test_revert_gives_back_the_plain_network_with_the_weights_as_they_are(case, image):
    plain, convert = case
    converted = convert(guide_scale=0.1)
    reverted = hotswap.revert(converted)
    assert torch.equal(values(reverted(image)), values(plain(image)))
    assert type(reverted) is type(plain)
    assert [type(m) for m in reverted.modules()] == [type(m) for m in plain.modules()]
    assert repr(reverted) == repr(plain)
    assert hotswap.status(converted).plan is not None  # a copy was reverted

    tuned = next(m for m in converted.modules() if isinstance(m, SwappedConv2d))
    tuned.weight.add_(1.0)
    assert not torch.equal(values(hotswap.revert(converted)(image)), values(plain(image)))


def test_gradients_reach_every_weight(case, image):
    _, convert = case
    converted = convert(guide_scale=0.1).train()
    values(converted(image)).square().sum().backward()
    swapped = {p: m for p, m in converted.named_modules() if isinstance(m, SwappedConv2d)}
    assert swapped.keys() == {s.target for s in hotswap.status(converted).plan.swaps}
    for path, parameter in converted.named_parameters():
        assert parameter.grad is not None, path
    for layer in swapped.values():
        assert layer.weight.grad.abs().max() > 0


@torch.no_grad()
def test_deepcopy_gives_the_same_outputs_and_shares_nothing(converted, image):
    twin = copy.deepcopy(converted)
    expected = values(converted(image))
    assert torch.equal(values(twin(image)), expected)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(values(converted(image)), expected)


def mostly(names):
    """These networks in every run and the others with `-m slow`."""
    marked = [pytest.param(name, marks=[] if name in names else pytest.mark.slow) for name in NETWORKS]
    return pytest.mark.parametrize("case", marked, indirect=True, scope="module")


@torch.no_grad()
@mostly(["vgg16", "deeplabv3", "timm_convnext"])
def test_compile_in_one_graph(converted, image):
    torch._dynamo.reset()
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    assert relative(values(compiled(image)), values(converted(image))) < 1e-5


@torch.no_grad()
@mostly(["resnet18", "mobilenet_v3", "deeplabv3"])
def test_export_with_dynamic_batch_and_size(converted, image):
    auto = torch.export.Dim.AUTO
    program = torch.export.export(converted, (image,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    larger = torch.randn(3, 3, 96, 64)
    assert relative(values(program.module()(larger)), values(converted(larger))) < 1e-5


def test_vgg16_with_the_papers_names_is_the_papers_swap():
    model = hotswap.convert(networks.thin_vgg16(), targets=["conv3_3", "conv4_3", "conv5_3"], guide="conv2_2")
    swaps = hotswap.status(model).plan.swaps
    assert [s.target for s in swaps] == ["features.14", "features.21", "features.28"]
    assert {s.guide for s in swaps} == {("features.7",)}  # conv2_2
    assert {s.guide_scale for s in swaps} == {1e-4}
    [code] = model.features.__dict__[CODE]["forward"]
    assert "guide_copy('features.7', _8)" in code.evaluation.source  # taken after its ReLU, features.8

    by_rule = hotswap.status(hotswap.convert(networks.thin_vgg16(), "paper")).plan
    assert dataclasses.replace(by_rule, notes=by_rule.notes[1:]) == hotswap.status(model).plan


@torch.no_grad()
def test_autocast_and_half_precision(image):
    plain = torchvision.models.resnet18(**FEW_CLASSES).eval()
    converted = hotswap.convert(plain, guide_scale=0.1)
    expected = converted(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert relative(converted(image).float(), expected) < 0.05
    assert relative(converted.bfloat16()(image.bfloat16()).float(), expected) < 0.05


@pytest.mark.parametrize("target", ["0", "resize_*"])
def test_half_precision_does_not_round_a_learned_scale(target):
    layers = (
        torch.nn.Conv2d(3, 3, 3, padding=1),
        torch.nn.AvgPool2d(2),
        torch.nn.Upsample(scale_factor=2, mode="bilinear"),
    )
    converted = hotswap.convert(torch.nn.Sequential(*layers), target, "input", learn_scale=True)
    image = torch.rand(1, 3, 16, 16)
    converted(image).sum().backward()
    layer = converted[0 if target == "0" else 2]
    scale = layer.guide_scale
    for dtype in (torch.float16, torch.bfloat16):
        converted.to(dtype)
        assert layer.guide_scale == scale
        assert layer.guide_log_scale.dtype == layer.guide_log_scale.grad.dtype == torch.float32
        assert converted[0].weight.dtype == dtype
        assert converted(image.to(dtype)).dtype == dtype
    assert converted.double()[0].weight.dtype == layer.guide_log_scale.dtype == torch.float64
    assert converted.to("meta")[0].weight.device == layer.guide_log_scale.device == torch.device("meta")


def test_a_swapped_network_trains_and_its_learned_scale_moves(image):
    torch.manual_seed(0)
    converted = hotswap.convert(torchvision.models.resnet18(**FEW_CLASSES), guide_scale=0.1, learn_scale=True)
    extra = set(converted.state_dict()) - set(torchvision.models.resnet18(**FEW_CLASSES).state_dict())
    assert extra == {f"{s.target}.guide_log_scale" for s in hotswap.status(converted).plan.swaps}
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.05)
    labels = torch.tensor([1, 4])
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(converted(image), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    scales = [s.guide_scale for s in hotswap.status(converted).plan.swaps]
    assert all(abs(scale - 0.1) > 1e-7 for scale in scales)
    assert not any("guide_log_scale" in name for name in hotswap.revert(converted).state_dict())


@torch.no_grad()
def test_inplace_converts_and_reverts_the_network_itself(image):
    model = torchvision.models.resnet18(**FEW_CLASSES).eval()
    expected, before = model(image), [type(m) for m in model.modules()]
    assert hotswap.convert(model, inplace=True, guide_scale=1.0) is model
    assert not torch.equal(model(image), expected)
    assert hotswap.revert(model, inplace=True) is model
    assert torch.equal(model(image), expected)
    assert [type(m) for m in model.modules()] == before


def test_one_distance_is_shared_by_targets_of_one_size(monkeypatch, image):
    from hotswap.targets import forward_ops

    calls = []
    monkeypatch.setattr(
        forward_ops.pac_ops,
        "squared_distance2d",
        lambda *a, _f=forward_ops.pac_ops.squared_distance2d: calls.append(a) or _f(*a),
    )
    model = hotswap.convert(networks.thin_vgg16().features, ["conv3_2", "conv3_3", "conv4_2", "conv4_3"], "conv2_2")
    calls.clear()
    model(image)
    assert len(calls) == 2
