"""Conversions of networks on a GPU: on one where there is one, and everywhere on fake tensors of one.

A fake tensor has a device but no data, and refuses to meet one of another device, which is what can go wrong.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import networks
import pytest
import torch
from devices import needs_fake_cuda
from networks import conv
from swap_by_hand import close
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import StdConv2d
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrizations

import hotswap

SIZE = (2, 3, 64, 64)


@dataclass(frozen=True)
class Case:
    make: Any
    options: dict[str, Any] = field(default_factory=lambda: {"targets": "target", "guide": "guide"})
    methods: tuple[str, ...] = ("fx", "hooks")


class Wrapped(networks.Plain):
    """Plain, with another layer for a target."""

    def __init__(self, target):
        super().__init__()
        self.target = target


class Segmenter(nn.Module):
    """Convolutions, and an enlargement to the image."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head, self.up = (
            networks.thin_vgg11(),
            conv(8, 2),
            nn.Upsample(scale_factor=2, mode="bilinear"),
        )

    def forward(self, x):
        coarse = self.up(self.head(self.trunk(x)))
        return nn.functional.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)


PAPER = {"targets": "paper", "guide": "auto"}
CASES = {
    "a convolution": Case(networks.Plain),
    "grouped, strided": Case(lambda: networks.Plain(groups=2, stride=2)),
    "reflecting": Case(lambda: networks.Plain(padding_mode="reflect")),
    "a subclass that pads": Case(lambda: Wrapped(Conv2dSame(8, 8, 3, stride=2))),
    "a subclass that changes its weight": Case(lambda: Wrapped(StdConv2d(8, 8, 3))),
    "a weight with a norm": Case(lambda: Wrapped(parametrizations.weight_norm(conv()))),
    "transposed": Case(lambda: Wrapped(nn.ConvTranspose2d(8, 8, 3, 2, 1, 1))),
    "a pooling": Case(lambda: Wrapped(nn.AvgPool2d(3, 1, 1))),
    "called twice": Case(networks.SharedHead, {"targets": "head", "guide": "guide"}),
    "guided by the image": Case(networks.Plain, {"targets": "target", "guide": "input"}),
    "several guides": Case(networks.Plain, {"targets": "target", "guide": ["input", "guide"]}),
    "window conserved": Case(networks.Plain, {"targets": "target", "guide": "guide", "conserve": "window"}),
    "a learned scale": Case(networks.Plain, {"targets": "target", "guide": "guide", "learn_scale": True}),
    "chosen by itself": Case(Segmenter, PAPER),
    "enlargements": Case(Segmenter, {"targets": "resize_*", "guide": "input"}, ("fx",)),
    "enlargements, wide": Case(Segmenter, {"targets": "resize_*", "guide": "input", "footprint": 4}, ("fx",)),
    "both": Case(Segmenter, {"targets": ["paper", "resize_*"], "guide": "input", "learn_scale": True}, ("fx",)),
}
PAIRS = [(name, method) for name, case in CASES.items() for method in case.methods]
every_case = pytest.mark.parametrize(("name", "method"), PAIRS)


def converted(net, name, method, image):
    return hotswap.convert(net, **CASES[name].options, guide_scale=0.5, method=method, example_inputs=image)


def outputs(result):
    return result if isinstance(result, tuple) else (result,)


# torch's own, where it copies one
copies = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")


# A learned scale is read as a number when it is set, which a fake tensor has not: those on a GPU alone.
@pytest.mark.parametrize(("name", "method"), [p for p in PAIRS if "learn_scale" not in CASES[p[0]].options])
@copies
@needs_fake_cuda
def test_nothing_meets_another_device(name, method):
    with FakeTensorMode(allow_non_fake_inputs=True):
        net, image = faked(CASES[name].make)
        stays_there(converted(net, name, method, image), image)


@copies
@needs_fake_cuda
@pytest.mark.parametrize("name", ["a convolution", "a pooling", "both"])
def test_nor_do_calibrated_layers(name):
    """What was measured on a CPU, carried out on a GPU."""
    make, options = CASES[name].make, {**CASES[name].options, "learn_scale": False}
    plan = hotswap.status(hotswap.convert(make().eval(), **options, calibrate_on=[torch.rand(SIZE)])).plan
    with FakeTensorMode(allow_non_fake_inputs=True):
        net, image = faked(make)
        stays_there(hotswap.apply(net, plan, example_inputs=image), image)


def faked(make):
    """A network and an image on a GPU; what is made later without a word of its device is on the CPU."""
    with torch.device("cuda"):
        return make().eval(), torch.empty(SIZE)


def stays_there(swapped, image):
    assert {x.device.type for x in outputs(swapped(image))} == {"cuda"}
    assert {x.device.type for x in swapped.state_dict().values()} == {"cuda"}
    assert {x.device.type for x in outputs(hotswap.revert(swapped)(image))} == {"cuda"}


@pytest.fixture
def gpu(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return torch.device("cuda")


@pytest.mark.gpu
@every_case
def test_a_gpu_computes_what_the_cpu_does(name, method, gpu):
    """Output and every gradient; and back again, to the last bit."""
    net, image = CASES[name].make().eval(), torch.rand(SIZE)
    there, there_image = copy.deepcopy(net).to(gpu), image.to(gpu)
    plain = outputs(there(there_image))
    swapped, other = converted(net, name, method, image), converted(there, name, method, there_image)
    for here, elsewhere in zip(outputs(swapped(image)), outputs(other(there_image)), strict=True):
        close(elsewhere.cpu(), here)
    for model, x in ((swapped, image), (other, there_image)):
        sum(y.square().sum() for y in outputs(model(x))).backward()
    for (key, here), elsewhere in zip(swapped.named_parameters(), other.parameters(), strict=True):
        assert (here.grad is None) == (elsewhere.grad is None), key
        if here.grad is not None:
            torch.testing.assert_close(elsewhere.grad.cpu(), here.grad, rtol=1e-3, atol=1e-3)
    for before, after in zip(plain, outputs(hotswap.revert(other)(there_image)), strict=True):
        assert torch.equal(before, after)


@pytest.mark.gpu
@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_there(name, method, dtype, gpu):
    """Converted in it, and autocast to it: near the CPU's float32."""
    net, image = CASES[name].make().eval(), torch.rand(SIZE)
    exact = outputs(converted(copy.deepcopy(net), name, method, image)(image))
    there, half = net.to(gpu, dtype), image.to(gpu, dtype)
    found = outputs(converted(there, name, method, half)(half))
    swapped = converted(there.float(), name, method, half.float())
    with torch.autocast("cuda", dtype):
        cast = outputs(swapped(half.float()))
    for expected, *results in zip(exact, found, cast, strict=True):
        for result in results:
            assert (result.cpu().float() - expected).norm() < 0.03 * expected.norm()


@pytest.mark.gpu
def test_calibrated_compiled_and_moved(gpu):
    """What follows a conversion: scales from data, a graph, and the CPU again."""
    net, batches = Segmenter().eval().to(gpu), [torch.rand(SIZE, device=gpu) for _ in range(2)]
    swapped = hotswap.convert(net, "resize_*", "input", calibrate_on=batches, deviation=0.4)
    assert all(abs(check.deviation - 0.4) < 0.02 for check in hotswap.verify(swapped, batches).targets)
    result = swapped(batches[0])
    torch._dynamo.reset()
    close(torch.compile(swapped, fullgraph=True)(batches[0]), result)
    close(swapped.cpu()(batches[0].cpu()), result.cpu())
