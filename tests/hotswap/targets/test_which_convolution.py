"""Of the convolutions inside a target, the one with the target's own weight is pixel-adaptive, at every size; or none is.

In each layer the right one alone has a bias: the oracle runs the plain network with `F.conv2d` replaced by a function
that makes just that one pixel-adaptive.
"""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from code_elsewhere import convolved
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import hotswap
import pac_ops
from hotswap import HotswapError

SCALE = 2.0
SIZES = [(12, 12), (9, 14), (21, 10), (16, 17)]
BLUR = torch.tensor([1.0, 2.0, 1.0])


def image(height=12, width=12):
    return torch.rand(2, 4, height, width, generator=torch.Generator().manual_seed(height * width))


def oracle(net, x):
    """What the plain network gives where the calls with a bias are guided by the image."""
    plain, guided = torch.conv2d, 0

    def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        nonlocal guided
        if bias is None:
            return plain(input, weight, None, stride, padding, dilation, groups)
        guided += 1
        guide = SCALE * (F.pad(x, (1, 1, 1, 1)) if padding == 0 else x)
        kernel = pac_ops.packernel2d(guide, None, 3, stride=stride, padding=padding, dilation=dilation)[0]
        return pac_ops.pacconv2d(input, kernel, weight, bias, stride, padding, dilation, groups)

    F.conv2d = torch.conv2d = conv2d
    try:
        with torch.no_grad():
            return net(x), guided
    finally:
        F.conv2d = torch.conv2d = plain


class Layer(nn.Conv2d):
    """With a blur of the same window, and a second weight of the same shape."""

    def __init__(self):
        super().__init__(4, 4, 3, padding=1)
        self.register_buffer("kernel", (BLUR[:, None] * BLUR / 16).repeat(4, 1, 1, 1))
        self.further = nn.Parameter(torch.randn(4, 4, 3, 3))

    def blur(self, x, kernel=None):
        return F.conv2d(x, self.kernel if kernel is None else kernel, padding=1, groups=4)


class BlurredFirst(Layer):
    def forward(self, x):
        return super().forward(self.blur(x))


class BlurredWhereLarge(Layer):
    def forward(self, x):
        y = super().forward(x)
        return self.blur(y) if x.shape[2] > 12 else y


class OtherWeightWhereOdd(Layer):
    def forward(self, x):
        if x.shape[2] % 2:
            x = x + F.conv2d(x, self.further, padding=1)
        return self._conv_forward(x, self.weight, self.bias)


class BlurOfItsStrength(Layer):
    """What only knows the weight's mean, shape, dtype or signs is another filter."""

    def forward(self, x):
        w = self.weight
        x = self.blur(self.blur(x, self.kernel * w.mean()), self.kernel.to(w))
        x = self.blur(x, self.kernel[:, [0]].expand_as(w[:, :1])) + self.blur(x, (w[:, :1] > 0).to(x.dtype))
        share = F.conv2d(torch.ones_like(x), torch.ones_like(w), padding=1)
        return super().forward(x) / share


class Standardised(Layer):
    def forward(self, x):
        w = self.weight.flatten(1)
        w = ((w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True)).view_as(self.weight)
        return self.blur(convolved(self.blur(x), w.to(x.dtype), self.bias))


class ThroughPartial(Layer):
    def forward(self, x):
        convolve = functools.partial(F.conv2d, weight=self.weight, bias=self.bias, padding=1)
        return convolve(self.blur(x))


class Engine:
    def run(self, layer, x, weight):
        return torch.conv2d(x, weight, layer.bias, padding=layer.padding)


class ByAnotherObject(Layer):
    def forward(self, x):
        return Engine().run(self, self.blur(x), torch.cat([self.weight[:2], self.weight.detach()[2:]]))


class Filled(Layer):
    """Its weight is written into another tensor."""

    def forward(self, x):
        w = self.weight.new_zeros(self.weight.shape)
        w[:] = self.weight
        return F.conv2d(self.blur(x), w, self.bias, padding=1)


class PaddedByHelper(Layer):
    def forward(self, x):
        return convolved(F.pad(self.blur(x), (1, 1, 1, 1)), self.weight, self.bias, 0)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return (w * 16).round() / 16

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Quantised(Layer):
    def forward(self, x):
        return F.conv2d(self.blur(x), Rounded.apply(self.weight), self.bias, padding=1)


class Bare(nn.Module):
    """No nn.Conv2d, and no modules inside."""

    def __init__(self):
        super().__init__()
        self.filters, self.shift = nn.Parameter(torch.randn(4, 4, 3, 3)), nn.Parameter(torch.randn(4))
        self.register_buffer("kernel", (BLUR[:, None] * BLUR / 16).repeat(4, 1, 1, 1))

    def forward(self, x):
        if x.shape[2] > 12:
            x = F.conv2d(x, self.kernel, padding=1, groups=4)
        return F.conv2d(x, 2 * self.filters, self.shift, padding=1)


KINDS = [
    BlurredFirst,
    BlurredWhereLarge,
    OtherWeightWhereOdd,
    BlurOfItsStrength,
    Standardised,
    ThroughPartial,
    ByAnotherObject,
    Filled,
    PaddedByHelper,
    Quantised,
    Bare,
    lambda: parametrizations.weight_norm(BlurredFirst()),
    lambda: nn.utils.spectral_norm(BlurredWhereLarge()),
]


def network(layer):
    torch.manual_seed(0)
    return nn.Sequential(layer(), nn.Tanh(), nn.Conv2d(4, 2, 1, bias=False)).eval()


def convert(net, **options):
    options = {"example_inputs": image(), "guide_scale": SCALE, "method": "hooks"} | options
    return hotswap.convert(net, "0", "input", **options)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: getattr(kind, "__name__", "made"))
def test_the_one_with_the_own_weight_is_adaptive_at_every_size(kind):
    net = network(kind)
    converted = convert(net)
    for size in SIZES:
        expected, guided = oracle(copy.deepcopy(net), image(*size))
        assert guided == 1
        with torch.no_grad():
            torch.testing.assert_close(converted(image(*size)), expected, msg=lambda m, s=size: f"{s}: {m}")


class Halved(nn.Module):
    def forward(self, w):
        return w / 2


def test_rewritten_compiled_and_with_cached_weights_it_is_the_same():
    net = network(BlurredWhereLarge)
    parametrize.register_parametrization(net[0], "weight", Halved())
    converted = convert(net, method="fx")
    expected = {size: oracle(net, image(*size))[0] for size in SIZES[1:3]}
    torch._dynamo.reset()
    compiled = torch.compile(converted, backend="eager", fullgraph=True, dynamic=False)
    for run in (converted, compiled):
        for size, output in expected.items():
            torch.testing.assert_close(run(image(*size)), output)
    with parametrize.cached():
        for size, output in expected.items():  # the second takes the weight that the first made
            torch.testing.assert_close(converted(image(*size)), output)


def test_a_replica_of_data_parallel_knows_its_weight():
    converted = convert(network(Bare))
    layer = converted[0]._replicate_for_data_parallel()
    layer._former_parameters, layer._parameters = dict(converted[0]._parameters), {}
    for name, parameter in layer._former_parameters.items():
        object.__setattr__(layer, name, parameter)
    guides = (image(),)
    assert torch.equal(
        type(layer).forward(layer, image(), guides), type(layer).forward(converted[0], image(), guides)
    )


# --- what is refused ------------------------------------------------------------------------------------------------


class OnlyAnother(Layer):
    def forward(self, x):
        return F.conv2d(x, self.further, self.bias, padding=1)


class Unfollowed(Layer):
    def forward(self, x):
        return F.conv2d(x, torch.from_numpy(self.weight.detach().numpy().copy()), self.bias, padding=1)


@pytest.mark.parametrize("kind", [OnlyAnother, Unfollowed])
def test_none_with_the_own_weight_is_refused_by_name(kind):
    with pytest.raises(
        HotswapError, match=rf"'0' cannot be swapped: {kind.__name__} computes no convolution of its w"
    ):
        convert(network(kind))


class ReturnsEarly(Layer):
    def forward(self, x):
        return super().forward(x) if x.shape[2] > 9 else x


class AnotherWhereLarge(Layer):
    def forward(self, x):
        return F.conv2d(x, self.weight if x.shape[2] < 20 else self.further, self.bias, padding=1)


class TwiceWhereLarge(Layer):
    def forward(self, x):
        return super().forward(super().forward(x) if x.shape[2] > 12 else x)


class DilatedWhereLarge(Layer):
    def forward(self, x):
        spread = 1 if x.shape[2] < 20 else 2
        return F.conv2d(x, self.weight, self.bias, padding=spread, dilation=spread)


class WiderWhereLarge(Layer):
    def forward(self, x):
        w = (
            self.weight
            if x.shape[2] < 20
            else torch.cat([self.weight[..., :1], self.weight, self.weight[..., :1]], 3)
        )
        return F.conv2d(x, w, self.bias, padding=(1, w.shape[3] // 2))


class ShiftedWhereLarge(Layer):
    def forward(self, x):
        pads = (1, 1, 1, 1) if x.shape[2] < 20 else (2, 0, 1, 1)
        return F.conv2d(F.pad(x, pads), self.weight, self.bias)


class ReflectsWhereLarge(Layer):
    def forward(self, x):
        mode = "constant" if x.shape[2] < 20 else "reflect"
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode), self.weight, self.bias)


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        (ReturnsEarly, (9, 14), "calls its convolution 0 times"),
        (AnotherWhereLarge, (21, 10), "calls its convolution 0 times"),
        (TwiceWhereLarge, (21, 10), "calls its convolution 2 times"),
        (
            DilatedWhereLarge,
            (21, 10),
            r"otherwise here \(.*dilation \(2, 2\)\) than when it was looked at \(.*\(1, 1\)\)",
        ),
        (WiderWhereLarge, (21, 10), r"otherwise here \(kernel_size \(3, 5\)"),
        (ShiftedWhereLarge, (21, 10), "pads its input otherwise"),
        (ReflectsWhereLarge, (21, 10), "pads its input otherwise"),
    ],
)
def test_what_is_computed_otherwise_at_another_size_is_an_error_there(kind, size, message, monkeypatch):
    monkeypatch.setattr("hotswap.targets.window._sizes", lambda window: [(10, 11), (11, 13)])  # not those that differ
    monkeypatch.setattr("hotswap.targets.window._LARGE", (17, 19))
    net = network(kind)
    converted = convert(net, check=False)
    torch.testing.assert_close(converted(image()), oracle(net, image())[0])
    with torch.no_grad(), pytest.raises(HotswapError, match=message):
        converted(image(*size))
