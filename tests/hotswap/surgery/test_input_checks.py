"""A network's own checks of its inputs are called as they are, before the graph."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import conv
from torch import nn

import hotswap
from hotswap import HotswapError

IMAGE = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


class Checked(nn.Module):
    """Its check depends on sizes, which a graph does not follow."""

    def __init__(self):
        super().__init__()
        self.guide, self.target, self.multiple = conv(3), conv(), 8

    def check(self, image):
        """Raise where the width does not suit."""
        if not self.multiple:
            return
        if image.shape[-1] % self.multiple != 0:
            raise RuntimeError(f"width must be a multiple of {self.multiple}")

    def forward(self, image):
        self.check(image)
        return self.target(F.relu(self.guide(image)))


class Calculates(Checked):
    """Functions of Python refuse proxies in their own ways."""

    def check(self, image):
        if int(image.shape[-1]).bit_count() != 2:  # TypeError, not TraceError
            raise RuntimeError("width must be the sum of two powers of 2")


class Stores(Checked):
    def check(self, image):
        if image.shape[-1] % self.multiple != 0:
            raise RuntimeError
        self.rows = image.shape[-2]


class Returns(Checked):
    def check(self, image):
        if image.shape[-1] % self.multiple != 0:
            raise RuntimeError
        return image


class Overwrites(Checked):
    def check(self, image):
        if image.shape[-1] % self.multiple != 0:
            raise RuntimeError
        image.sub_(0.5)


class OverwritesQuietly(Checked):
    def check(self, image):
        if image.shape[-1] % self.multiple != 0:
            raise RuntimeError
        image -= 0.5


class OverwritesAndNames(Checked):
    def check(self, image):
        centred = image.sub_(0.5)
        if centred.shape[-1] % self.multiple != 0:
            raise RuntimeError


class Registers(Checked):
    def check(self, image):
        if image.shape[-1] % self.multiple == 0:
            self.register_buffer("rows", torch.zeros(image.shape[-2]))


class NeverRaises(Checked):
    """A warning, say: nothing comes of it."""

    def check(self, image):
        if image.shape[-1] % self.multiple != 0:
            image = None


class LooksLater(Checked):
    """At what it computed: by then a graph would have begun."""

    def forward(self, image):
        fine = F.relu(self.guide(image))
        self.check(fine)
        return self.target(fine)


def convert(net, **options):
    return hotswap.convert(net, "target", "guide", method="fx", example_inputs=IMAGE, **options)


def test_the_check_is_kept():
    torch.manual_seed(0)
    net = Checked().eval()
    before = net(IMAGE)
    converted = convert(copy.deepcopy(net), guide_scale=0.0)
    torch.testing.assert_close(converted(IMAGE), before, rtol=0, atol=2e-6)
    for each in (converted, copy.deepcopy(converted)):
        with pytest.raises(RuntimeError, match="width must be a multiple of 8"):
            each(IMAGE[..., :20])
    converted.multiple = 0  # the check is the network's, and sees what it is now
    assert converted(IMAGE[..., :20]).shape == (2, 8, 16, 20)
    assert "check" not in converted.__dict__


def test_compiled_and_exported_networks_are_not_bound_to_sizes():
    net = convert(Checked().eval())
    dynamic = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(net, (IMAGE,), dynamic_shapes=(dynamic,)).module()
    odd = IMAGE[..., :20]
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    net_without = copy.deepcopy(net)
    net_without.multiple = 0
    for run in (program, compiled):
        torch.testing.assert_close(run(odd), net_without(odd), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "network", [Stores, Registers, Returns, Overwrites, OverwritesQuietly, OverwritesAndNames, LooksLater]
)
def test_what_is_more_than_a_check_of_inputs_is_not_taken_for_one(network):
    with pytest.raises(HotswapError, match=r"forward cannot be traced by torch.fx"):
        convert(network().eval())


def test_a_check_may_calculate():
    converted = convert(Calculates().eval())
    assert converted(IMAGE).shape == (2, 8, 16, 24)
    with pytest.raises(RuntimeError, match="sum of two powers of 2"):
        converted(IMAGE[..., :16])


def test_a_check_need_not_raise():
    assert convert(NeverRaises().eval())(IMAGE[..., :20]).shape == (2, 8, 16, 20)


def test_a_real_network_with_a_check():
    smp = pytest.importorskip("segmentation_models_pytorch", reason="pip install hotswap[smp]")
    net = smp.FPN("resnet18", encoder_weights=None, classes=3).eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = net(image)
        net = hotswap.convert(net, "resize_*", "input", example_inputs=image, guide_scale=0.0)
        torch.testing.assert_close(net(image), before, rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="Wrong input shape height=66, width=64"):
        net(torch.rand(1, 3, 66, 64))
