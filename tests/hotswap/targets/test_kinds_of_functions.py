"""Modules that are targets because they call the function of a convolution with their own weight."""

import pytest
import torch
import torch.nn.functional as F
from kinds_of_targets import METHODS, Block, Scaled, resized
from swap_by_hand import close, swap
from torch import nn

import hotswap
import pac_ops


class Functional(nn.Module):
    """A convolution, spelt out."""

    def __init__(self, padding=1, groups=2):
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(6, 8 // groups, 3, 3)), nn.Parameter(torch.randn(6))
        self.padding, self.groups = padding, groups

    def forward(self, x):
        return F.relu(F.conv2d(F.pad(x, (0, 2, 0, 0)), self.kernel, self.shift, 2, self.padding, groups=self.groups))


@pytest.mark.parametrize("method", METHODS)
def test_a_module_that_calls_the_function_with_its_own_weight(method, image):
    torch.manual_seed(0)
    net = Block(Functional()).eval()
    converted = swap(net, method=method)
    x, guide = net.parts(image)
    x, guide = F.pad(x, (0, 2, 0, 0)), F.pad(resized(guide, x.shape[2:]), (0, 2, 0, 0))
    kernel = pac_ops.packernel2d(guide, None, 3, stride=2, padding=1)[0]
    found = pac_ops.pacconv2d(x, kernel, net.target.kernel, net.target.shift, 2, 1, 1, 2)
    close(converted(image), F.relu(found))
    assert isinstance(converted.target, Functional)
    assert list(converted.state_dict()) == list(net.state_dict())
    converted(image).sum().backward()
    assert converted.target.kernel.grad.abs().max() > 0
    assert converted.guide.weight.grad.abs().max() > 0
    reverted = hotswap.revert(converted)
    assert type(reverted.target) is Functional
    assert torch.equal(reverted(image), net(image))
    for network in (net, converted):
        listed = {conv.path: conv for conv in hotswap.inspect(network, image).convolutions}
        assert listed["target"].kind.endswith("Functional")
        assert (listed["target"].stride, listed["target"].groups) == ((2, 2), 2)
        assert listed["target"].parameters == 6 * 4 * 9 + 6


class Around(Functional):
    """The same with modules inside, one of them a convolution of the same window."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(6)

    def forward(self, x):
        x = F.pad(self.before(x), (0, 2, 0, 0))
        return self.after(F.conv2d(x, self.kernel, self.shift, 2, self.padding, groups=self.groups))


@pytest.mark.parametrize("method", METHODS)
def test_a_module_with_modules_inside_that_calls_the_function_with_its_own_weight(method, image):
    torch.manual_seed(0)
    net = Block(Around()).eval()
    converted = swap(net, method=method)
    x, guide = net.parts(image)
    x, guide = F.pad(net.target.before(x), (0, 2, 0, 0)), F.pad(resized(guide, x.shape[2:]), (0, 2, 0, 0))
    kernel = pac_ops.packernel2d(guide, None, 3, stride=2, padding=1)[0]
    close(
        converted(image),
        net.target.after(pac_ops.pacconv2d(x, kernel, net.target.kernel, net.target.shift, 2, 1, 1, 2)),
    )
    assert list(converted.state_dict()) == list(net.state_dict())
    compiled = torch.compile(converted, backend="eager", fullgraph=True)
    close(compiled(image), converted(image))
    assert type(hotswap.revert(converted).target) is Around


def test_a_target_inside_a_target_is_refused(image):
    with pytest.raises(hotswap.HotswapError, match="target 'target.before' lies inside target 'target'"):
        hotswap.convert(Block(Around()).eval(), ["target", "target.before"], "guide", example_inputs=image)


@pytest.mark.parametrize("method", ["auto", "hooks"])
def test_an_enlargement_guided_from_inside_a_target_leaves_the_target_steered(method, image):
    """A graph that reads that guide has taken in the target's code, which nothing steers then."""

    class Enlarged(Block):
        def forward(self, x):
            return F.interpolate(super().forward(x), size=self.pool(x).shape[2:], mode="bilinear")

    net = Enlarged(Around()).eval()
    guides = {"target": "guide", "resize_1": "target.before"}
    scales = {"target": 1.0, "resize_1": 0.0}
    arguments = (["target", "resize_1"], guides)
    both = hotswap.convert(net, *arguments, guide_scale=scales, method=method, example_inputs=image)
    alone = hotswap.convert(net, "target", "guide", guide_scale=1.0, method="hooks", example_inputs=image)
    assert (alone(image) - net(image)).abs().max() > 1e-3
    close(both(image), alone(image))


class Twofold(Functional):
    def forward(self, x):
        return super().forward(x) + super().forward(x)


def test_a_module_that_calls_no_such_function_or_two_is_refused(image):
    with pytest.raises(
        hotswap.HotswapError, match="Scaled computes no convolution of its weight with torch.nn.functional.conv2d"
    ):
        swap(Block(Scaled()))
    with pytest.raises(hotswap.HotswapError, match="calls its convolution 2 times"):
        swap(Block(Twofold()))
