"""Gates: 1 + a (K - 1) in K's place. At a = 0 the network is the plain one to the last bit, and a learns at once."""

import contextlib
import copy
import json
import pickle

import networks
import pytest
import torch
import torch.nn.functional as F
import torchvision
from kinds_of_targets import METHODS, Block
from networks import conv
from saving import same
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2d
from torch import nn

import hotswap
from hotswap.checkpoint.read import read
from hotswap.errors import HotswapError

IMAGE = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(3))
LAYERS = {
    "plain": lambda: conv(8, 6),
    "strided, 5x5": lambda: nn.Conv2d(8, 6, 5, stride=2, padding=2),
    "dilated, no bias": lambda: nn.Conv2d(8, 6, 3, padding=2, dilation=2, bias=False),
    "grouped": lambda: nn.Conv2d(8, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
    "padded by reflection": lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
    "padding by name": lambda: nn.Conv2d(8, 6, 3, padding="same"),
    "transposed": lambda: nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1),
    "pool": lambda: nn.AvgPool2d(3, 2, 1),
    "pool, ceil": lambda: nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False),
    "own forward": lambda: StdConv2d(8, 8, 3, stride=2),
    "own forward and padding": lambda: ScaledStdConv2dSame(8, 8, 3, stride=2, padding="same"),
    "own padding": lambda: Conv2dSame(8, 8, 3, stride=2),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(conv(8, 6)),
}


class Two(nn.Module):
    """Two targets of one window, guide and size, which share distances."""

    def __init__(self):
        super().__init__()
        self.guide, self.target, self.second, self.head = conv(3), conv(), conv(), conv(8, 2)

    def forward(self, x):
        return self.head(self.second(F.relu(self.target(F.relu(self.guide(x))))))


def gated(net, targets="target", guide="guide", *, gate=True, **options):
    options = {"calibrate_on": [IMAGE], "deviation": 0.3} | options
    return hotswap.convert(net, targets, guide, gate=gate, **options)


def nearly_open(model, value=0.4):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("guide_gate"):
                p.copy_(torch.linspace(value, value / 2, p.numel()))
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_closed_it_is_the_plain_network_and_learns_at_once(name, method):
    torch.manual_seed(0)
    net = Block(LAYERS[name]()).eval()
    for gate in (1, 2):
        if gate == 2 and isinstance(net.target, nn.AvgPool2d):
            continue
        swapped = gated(net, gate=gate, method=method)
        out = swapped(IMAGE)
        assert torch.equal(out, net(IMAGE))
        out.square().sum().backward()
        grad = swapped.target.guide_gate.grad
        assert grad.shape == (gate,)
        assert grad.abs().min() > 0
        with torch.no_grad():
            swapped.target.guide_gate -= 1e-3 * grad.sign()
        assert swapped(IMAGE).square().sum() < out.square().sum()  # down the gradient
        reverted = hotswap.revert(swapped)
        assert torch.equal(reverted(IMAGE), net(IMAGE))
        assert list(reverted.state_dict()) == list(net.state_dict())


@pytest.mark.parametrize("value", [0.0, 0.6])
@pytest.mark.parametrize("name", ["strided, 5x5", "grouped", "transposed", "pool", "own padding"])
def test_the_gates_gradient_against_swaps_without(name, value):
    """K' is linear in a, and so is the layer: in float64 its slope is that from a plain layer to an ungated one."""
    torch.manual_seed(0)
    net = Block(LAYERS[name]()).eval().double()
    image, options = IMAGE.double(), {"calibrate_on": [IMAGE.double()]}
    swapped, ungated = gated(net, **options).double(), gated(net, gate=False, **options)
    nearly_open(swapped, value)
    change = ungated(image) - net(image)
    expected = net(image) + value * change
    torch.testing.assert_close(swapped(image), expected, rtol=1e-6, atol=1e-7)
    grad = torch.randn_like(expected)
    swapped(image).backward(grad)
    torch.testing.assert_close(swapped.target.guide_gate.grad.sum(), (grad * change).sum(), rtol=1e-5, atol=0)
    ways = {name: p.grad for name, p in swapped.named_parameters() if not name.endswith("guide_gate")}
    plain, open_ = copy.deepcopy(net), ungated
    plain(image).backward((1 - value) * grad)
    open_(image).backward(value * grad)
    for name, p in open_.named_parameters():
        torch.testing.assert_close(ways[name], p.grad + plain.get_parameter(name).grad, rtol=1e-5, atol=1e-6)


CONTEXTS = {
    "training": contextlib.nullcontext,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference": torch.inference_mode,
}


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_whole_network_is_the_same_to_the_last_bit(context):
    torch.manual_seed(0)
    net, images = torchvision.models.resnet18(num_classes=3), torch.rand(2, 3, 32, 32)
    swapped = gated(net, ["layer2.1.conv2", "layer3.0.conv1"], "layer1", calibrate_on=[images])
    for form in (torch.contiguous_format, torch.channels_last):
        ours, plain = copy.deepcopy(swapped).to(memory_format=form), copy.deepcopy(net).to(memory_format=form)
        with CONTEXTS[context]():
            assert torch.equal(ours(images), plain(images))
    if context == "training":
        nn.functional.cross_entropy(swapped(images), torch.tensor([0, 2])).backward()
        assert all(p.grad is not None for p in swapped.parameters())
        assert all(p.grad.abs() > 0 for n, p in swapped.named_parameters() if n.endswith("guide_gate"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_in_every_precision(dtype):
    """The gate stays float32 where weights are narrower, as a learned scale does."""
    net, image = Two().eval().to(dtype), IMAGE.to(dtype)
    for swapped in (gated(net, calibrate_on=[image]), gated(Two(), calibrate_on=[IMAGE]).to(dtype)):
        plain = hotswap.revert(swapped)
        out = swapped.eval()(image)
        assert torch.equal(out, plain(image))
        out.float().square().sum().backward()
        assert swapped.target.guide_gate.dtype in (torch.float32, dtype)
        assert swapped.target.guide_gate.grad.abs() > 0


def test_compiled_it_is_the_compiled_plain_network():
    """Inductor lays convolutions out as it likes, and is a rounding apart from eager code with them and without."""
    net = Block(conv(8, 6)).eval()
    swapped = gated(net)
    torch._dynamo.reset()
    ours = torch.compile(swapped, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(ours(IMAGE), torch.compile(net, fullgraph=True, backend="aot_eager")(IMAGE))
        nearly_open(swapped)
        assert not torch.equal(ours(IMAGE), net(IMAGE))
        torch.testing.assert_close(ours(IMAGE), swapped(IMAGE))


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("gate", [True, 4])
def test_saved_loaded_copied_and_applied_again(gate, suffix, tmp_path):
    net = Two().eval()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        model = nearly_open(gated(net, gate=gate, learn_scale=True, conserve="window")).to(dtype)
        path, image = tmp_path / f"m.{suffix}", IMAGE.to(dtype)
        hotswap.save(model, path)
        loaded = hotswap.load(path, net)
        assert same(loaded.state_dict(), model.state_dict())
        assert hotswap.status(loaded) == hotswap.status(model)
        assert torch.equal(loaded(image), model(image))
        assert not any("guide" in name.rpartition(".")[2] for name in read(path).state_dict)
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(image), model(image))
    plan = hotswap.Plan.from_dict(json.loads(json.dumps(hotswap.status(model).plan.to_dict())))
    assert plan == hotswap.status(model).plan
    applied = hotswap.apply(net, plan)  # gates, as scales, are those of the plan
    assert torch.equal(applied.target.guide_gate, model.target.guide_gate)
    more = hotswap.convert(model.float(), "second", "guide", guide_scale=0.1)  # further targets leave it
    assert torch.equal(more.target.guide_gate, model.target.guide_gate)
    assert more.second.guide_gate is None
    assert not any("guide_gate" in name for name in hotswap.revert(more).state_dict())


def test_what_verify_status_and_calibrate_say():
    net = networks.Plain().eval()
    swapped = gated(net)
    checked = hotswap.verify(swapped, [IMAGE])
    assert checked.output_relative == 0
    assert checked.same_state
    (check,) = checked.targets
    assert check.inert
    assert abs(check.deviation - 0.3) < 0.01  # K's own
    (warning,) = checked.warnings
    assert warning.startswith("1 swaps are inert (a = 0): target")
    assert hotswap.status(swapped).warnings == checked.warnings
    assert "gate=0 " not in repr(net)
    assert "gate=0," in repr(swapped)
    nearly_open(swapped)
    assert hotswap.verify(swapped, [IMAGE]).warnings == hotswap.status(swapped).warnings == ()
    assert "0.4" in str(hotswap.status(swapped))
    hotswap.calibrate(swapped, [IMAGE], deviation=0.2)
    assert swapped.target.guide_gate == torch.tensor(0.4)  # calibration is K's
    assert "4, mean |a| 0.3" in str(hotswap.status(nearly_open(gated(net, gate=4))))


def test_targets_that_share_distances_have_gates_of_their_own():
    net = Two().eval()
    swapped = gated(net, ["target", "second"])
    assert torch.equal(swapped(IMAGE), net(IMAGE))
    with torch.no_grad():
        swapped.second.guide_gate += 0.5
    assert not torch.equal(swapped(IMAGE), net(IMAGE))
    seen = []
    for model in (net, swapped):
        model.target.register_forward_hook(lambda module, args, output: seen.append(output))
        model(IMAGE)
    assert torch.equal(*seen)


def test_an_exported_program_keeps_the_gate_a_parameter():
    model = gated(networks.Plain().eval())
    program = torch.export.export(model, (IMAGE,)).module()
    with torch.no_grad():
        assert torch.equal(program(IMAGE), model(IMAGE))
        program.get_parameter("target.guide_gate").fill_(0.4)
        torch.testing.assert_close(program(IMAGE), nearly_open(model)(IMAGE))


@pytest.mark.parametrize(
    ("targets", "options", "reason"),
    [
        ("target", {"gate": "yes"}, "gate must be True, False or a number of groups of channels, got 'yes'"),
        ("target", {"gate": -1}, "got -1"),
        ("target", {"gate": 3}, "must be one, or a divisor of its 8 output channels, got 3"),
        ("target", {"guide_scale": 0}, "guide_scale must be > 0"),
        ("up", {"guide": "input"}, "gate must be False where no convolution is a target"),
        ("average", {"gate": 2}, "a pool takes one, got 2"),
    ],
)
def test_refusals(targets, options, reason):
    class Net(networks.Plain):
        def __init__(self):
            super().__init__()
            self.up, self.average = nn.Upsample(size=(12, 10), mode="bilinear"), nn.AvgPool2d(3, 1, 1)

        def forward(self, x):
            return self.up(F.relu(self.average(super().forward(x))))

    options = {"guide": "guide", "gate": True, "example_inputs": IMAGE} | options
    with pytest.raises(HotswapError, match=reason):
        hotswap.convert(Net().eval(), targets, **options)
