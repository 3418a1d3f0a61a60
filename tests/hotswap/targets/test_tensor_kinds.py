"""Converted networks in half precision, and on tensors of subclasses: as the plain network takes them."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from kinds import KINDS, assert_same
from torch import nn

import hotswap
import pac_ops
from hotswap.choices import RESIZE_MODES
from hotswap.targets.forward_ops import window_distance
from hotswap.targets.window import sliding_of

COARSE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
IMAGE = F.interpolate(COARSE, size=(32, 32), mode="bicubic").clamp(0, 1)  # smooth, as pictures are
BACKENDS = [name for name in ("native", "cpu", "reference") if pac_ops.backends.choose.why_not(name, IMAGE) is None]


class Segmenter(nn.Module):
    """Convolutions of several kinds, a pool, and three ways to enlarge."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fine = nn.Conv2d(3, 6, 3, padding=1)
        self.down = nn.Sequential(nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8))
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.mirrored = nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")
        self.back = nn.ConvTranspose2d(4, 4, 3, 2, 1, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.fixed = nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=4)
        tent = torch.tensor([0.25, 0.75, 0.75, 0.25])
        self.fixed.weight = nn.Parameter((tent[:, None] * tent).expand(4, 1, 4, 4).clone(), requires_grad=False)

    def forward(self, x):
        y = self.mirrored(self.pool(self.down(self.fine(x).relu())))
        y = self.back(y)
        return self.up(y) + self.fixed(y) + F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=True)


SWAPS = {
    "convolutions": (["down.0", "down.2", "pool", "mirrored", "back"], "fine"),
    "convolutions by the image, resized": (["mirrored", "pool"], "input"),
    "enlargements": ("resize_*", "input"),
    "enlargements by features": ("resize_*", "fine"),
}


def converted(swap, method, scale=20.0):
    targets, guide = SWAPS[swap]
    return hotswap.convert(Segmenter().eval(), targets, guide, guide_scale=scale, method=method, example_inputs=IMAGE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("swap", SWAPS)
def test_half_precision_is_as_exact_as_the_plain_network(swap, method, dtype):
    """Against float64 with the same rounded weights and image.

    The plain network's own error, of its activations as they are rounded, is the measure. What a swap adds (roundings
    of its layers, and what those of a guide make of K) is independent of it, and no larger: together, a root of 2.
    """
    net, image = converted(swap, method).to(dtype), IMAGE.to(dtype)
    errors = []
    for model in (net, hotswap.revert(copy.deepcopy(net))):
        out, exact = model(image), copy.deepcopy(model).double()(image.double())
        assert out.dtype == dtype
        errors.append(((out.double() - exact).norm() / exact.norm()).item())
    assert errors[0] <= 2**0.5 * errors[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", RESIZE_MODES)
def test_a_resized_guide_of_half_precision_is_as_the_same_values_in_float32(how, dtype):
    sliding, guide = sliding_of(nn.Conv2d(3, 3, 3, padding=1)), IMAGE.to(dtype)
    for size in ((2, 45, 40), (2, 9, 13)):
        found, exact = (window_distance(("guide",), (x,), size, sliding, how) for x in (guide, guide.float()))
        torch.testing.assert_close(found, exact)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_an_average_does_not_overflow_where_its_sum_would(dtype):
    net, image = nn.Sequential(nn.AvgPool2d(3, 1, 1)), torch.full((1, 2, 6, 6), 3e4, dtype=dtype)
    swapped = hotswap.convert(net, "0", "input", guide_scale=0.0, example_inputs=image.float()).to(dtype)
    torch.testing.assert_close(swapped(image), net(image))


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_an_enlarging_transposed_convolution_is_narrowed_by_autocast_as_the_plain_one(method):
    net = converted("enlargements", method, scale=0.0)
    plain = hotswap.revert(copy.deepcopy(net))
    for width in (torch.float32, torch.float64):
        layers, x = (model.to(width).fixed for model in (net, plain)), torch.rand(1, 4, 5, 6, dtype=width)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guided, expected = (layer(x, (x,)) if hasattr(layer, "swap") else layer(x) for layer in layers)
        assert guided.dtype == expected.dtype
        torch.testing.assert_close(guided.double(), expected.double(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", ["tagged", "unwrapping", "MONAI's", "torchvision's"])
@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("swap", ["convolutions", "enlargements"])
def test_the_class_is_that_of_the_plain_network(swap, method, kind):
    make = KINDS[kind]
    net = converted(swap, method, scale=2.0)
    with torch.no_grad():
        plain = Segmenter().eval()(make(IMAGE))
        for backend in BACKENDS:
            with pac_ops.use_backend(backend):
                assert_same(net(make(IMAGE)), plain, net(IMAGE))
    net(make(IMAGE)).sum().backward()
    there = {name: x.grad for name, x in net.named_parameters()}
    net.zero_grad()
    net(IMAGE).sum().backward()
    for name, x in net.named_parameters():
        if x.grad is not None:
            torch.testing.assert_close(there[name].as_subclass(torch.Tensor), x.grad)


@pytest.mark.parametrize("kind", ["tagged", "MONAI's"])
@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("swap", ["convolutions", "enlargements"])
def test_batches_of_a_subclass_calibrate_and_verify(swap, method, kind):
    (targets, guide), make = SWAPS[swap], KINDS[kind]
    options = {"deviation": 0.3, "method": method}
    found, expected = (
        hotswap.convert(Segmenter().eval(), targets, guide, calibrate_on=[x], **options) for x in (make(IMAGE), IMAGE)
    )
    plans = [hotswap.status(net).plan for net in (found, expected)]
    assert plans[0].drift == pytest.approx(plans[1].drift, rel=1e-6)  # large maps of plain tensors go row by row
    assert replace(plans[0], drift=plans[1].drift) == plans[1]
    assert hotswap.verify(found, [make(IMAGE)]).targets == hotswap.verify(expected, [IMAGE]).targets
