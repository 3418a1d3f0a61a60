"""Every kind of layer that can be a target, by both methods, against the swap spelt out."""

import networks
import pytest
import timm
import torch
import torch.nn.functional as F
from kinds_of_targets import METHODS, Block, Scaled, resized
from networks import conv
from swap_by_hand import close, swap
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import nn
from torch.nn.utils import parametrizations

import hotswap
import pac_ops


class Elsewhere(nn.Conv2d):
    """Pads by reflection in a forward of its own, and convolves through the base class."""

    def forward(self, x):
        return super().forward(F.pad(x, (2, 0, 1, 1), mode="reflect"))


class Doubled(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, 2 * weight, bias)


class Shaped(nn.Conv2d):
    """Pads in a way that no rule of hotswap's fits."""

    def forward(self, x):
        extra = x.shape[3] % 3
        return F.conv2d(F.pad(x, (extra, 1, 1, 1)), self.weight, self.bias)


def weight_of(layer):
    """What a forward of its own makes of the weight, computed by itself."""
    if isinstance(layer, (StdConv2d, StdConv2dSame)):
        flat = layer.weight.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + layer.eps).sqrt()
        return flat.view_as(layer.weight)
    if isinstance(layer, (ScaledStdConv2d, ScaledStdConv2dSame)):
        flat = layer.weight.flatten(1)
        flat = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, unbiased=False, keepdim=True) + layer.eps).sqrt()
        return (layer.gain.flatten()[:, None] * layer.scale * flat).view_as(layer.weight)
    if isinstance(layer, networks.StandardizedConv2d):
        return layer.weight - layer.weight.mean((1, 2, 3), keepdim=True)
    return 2 * layer.weight if isinstance(layer, Doubled) else layer.weight


# layer, and what it pads an input of 6 x 5 by: left, right, top, bottom
SUBCLASSES = {
    "StdConv2d": (lambda: StdConv2d(8, 8, 3), (1, 1, 1, 1)),
    "StdConv2d_stride": (lambda: StdConv2d(8, 8, 5, stride=2, groups=2), (2, 2, 2, 2)),
    "ScaledStdConv2d": (lambda: ScaledStdConv2d(8, 8, 3, dilation=2), (2, 2, 2, 2)),
    "Conv2dSame": (lambda: Conv2dSame(8, 8, 3, stride=2), (1, 1, 0, 1)),
    "Conv2dSame_5": (lambda: Conv2dSame(8, 8, (3, 5), stride=(1, 2), groups=8), (2, 2, 1, 1)),
    "StdConv2dSame": (lambda: StdConv2dSame(8, 8, 3, stride=2, padding="same"), (1, 1, 0, 1)),
    "ScaledStdConv2dSame": (lambda: ScaledStdConv2dSame(8, 8, 3, stride=2, padding="same"), (1, 1, 0, 1)),
    "unknown, reflecting": (lambda: Elsewhere(8, 8, 3), (2, 0, 1, 1)),
    "unknown, weight": (lambda: networks.StandardizedConv2d(8, 8, 3, padding=1), (1, 1, 1, 1)),
    "unknown, inner": (lambda: Doubled(8, 8, 3, padding=1), (1, 1, 1, 1)),
    "unknown, inner, circular": (lambda: Doubled(8, 8, 3, padding=1, padding_mode="circular"), (1, 1, 1, 1)),
}


def expected(net, image, pads):
    layer = net.target
    x, guide = net.parts(image)
    mode = (
        "reflect" if isinstance(layer, Elsewhere) else "circular" if layer.padding_mode == "circular" else "constant"
    )
    x, guide = F.pad(x, pads, mode), F.pad(resized(guide, x.shape[2:]), pads, mode)
    kernel = pac_ops.packernel2d(guide, None, layer.kernel_size, stride=layer.stride, dilation=layer.dilation)[0]
    return pac_ops.pacconv2d(x, kernel, weight_of(layer), layer.bias, layer.stride, 0, layer.dilation, layer.groups)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SUBCLASSES)
def test_convolutions_with_a_forward_of_their_own(name, method, image):
    make, pads = SUBCLASSES[name]
    torch.manual_seed(0)
    net = Block(make()).eval()
    if hasattr(net.target, "gain"):
        nn.init.normal_(net.target.gain)
    converted = swap(net, method=method)
    close(converted(image), expected(net, image, pads))
    plain = hotswap.convert(net, "target", "guide", guide_scale=0, method=method, example_inputs=image)
    close(plain(image), net(image))
    assert isinstance(converted.target, type(net.target))
    assert list(converted.state_dict()) == list(net.state_dict())
    converted(image).sum().backward()
    assert converted.target.weight.grad.abs().max() > 0
    assert converted.guide.weight.grad.abs().max() > 0
    assert type(hotswap.revert(converted).target) is type(net.target)
    assert torch.equal(hotswap.revert(converted)(image), net(image))


@pytest.mark.parametrize("name", ["Conv2dSame", "ScaledStdConv2dSame", "unknown, inner"])
def test_they_compile_in_one_graph_and_export(name, image):
    net = Block(SUBCLASSES[name][0]()).eval()
    converted = swap(net)
    result = converted(image)
    torch._dynamo.reset()
    close(torch.compile(converted, fullgraph=True, backend="aot_eager")(image), result)
    close(torch.export.export(converted, (image,)).module()(image), result)


def test_conservation_and_calibration_know_where_they_pad(image):
    net = Block(Conv2dSame(8, 8, 3, stride=2)).eval()
    converted = hotswap.convert(net, "target", "guide", calibrate_on=[image], deviation=0.2)
    (check,) = hotswap.verify(converted, [image]).targets
    assert abs(check.deviation - 0.2) < 0.01
    window = swap(net, conserve="window")
    constant = torch.zeros_like(image)
    close(window(constant), net(constant))


def test_a_class_that_nobody_knows_is_refused_with_the_call_that_teaches_it(image, monkeypatch):
    from hotswap.targets.window import _RULES

    monkeypatch.setattr("hotswap.targets.window._RULES", dict(_RULES))
    net = Block(Shaped(8, 8, 3)).eval()
    with pytest.raises(hotswap.HotswapError, match=r"hotswap.register_padding\(Shaped, rule\)"):
        swap(net)
    hotswap.register_padding(Shaped, lambda window, height, width: (width % 3, 1, 1, 1))
    for method in METHODS:
        pads = (net.parts(image)[0].shape[3] % 3, 1, 1, 1)
        close(swap(net, method=method)(image), expected(net, image, pads))
    hotswap.register_padding(Shaped, lambda window, height, width: (0, 0, 0, 0))
    with pytest.raises(hotswap.HotswapError, match="pads its input otherwise"):
        swap(net)


def test_what_runs_no_convolution_of_torch_is_refused():
    class Odd(nn.Conv2d):
        def forward(self, x):
            return torch.ops.aten.convolution(x, self.weight, self.bias, (1, 1), (1, 1), (1, 1), False, (0, 0), 1)

    with pytest.raises(
        hotswap.HotswapError, match="Odd computes no convolution of its weight with torch.nn.functional.conv2d"
    ):
        swap(Block(Odd(8, 8, 3)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm, nn.utils.weight_norm])
def test_reparametrised_weights(wrap, method, image):
    net = Block(StdConv2d(8, 8, 3)).eval()
    wrap(net.target)
    net.eval()
    weight = net.target.weight.detach().clone()
    converted = swap(net, method=method, inplace=True)  # the oldest of the three cannot be copied
    other = Block(StdConv2d(8, 8, 3)).eval()
    other.guide.load_state_dict(net.guide.state_dict())
    with torch.no_grad():
        other.target.weight.copy_(weight)
        other.target.bias = net.target.bias
    close(converted(image), swap(other, method=method)(image))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": (2, 1), "groups": 2, "dilation": 2, "bias": False},
    ],
    ids=str,
)
def test_transposed_convolutions(options, method, image):
    net = Block(nn.ConvTranspose2d(8, 6, 3, **options)).eval()
    converted = swap(net, method=method)
    x, guide = net.parts(image)
    layer = pac_ops.PacConvTranspose2d(8, 6, 3, **options)
    layer.load_state_dict(net.target.state_dict())
    close(converted(image), layer(x, resized(guide, net(image).shape[2:])))
    close(
        hotswap.convert(net, "target", "guide", guide_scale=0, method=method, example_inputs=image)(image), net(image)
    )
    assert isinstance(converted.target, nn.ConvTranspose2d)
    assert list(converted.state_dict()) == list(net.state_dict())
    converted(image).sum().backward()
    assert converted.guide.weight.grad.abs().max() > 0
    assert type(hotswap.revert(converted).target) is nn.ConvTranspose2d


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 1, "padding": 1},
        {"stride": 1, "padding": 1, "count_include_pad": False},
        {"stride": 2, "padding": 1, "ceil_mode": True},
        {"stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
        {"stride": 2, "ceil_mode": True, "divisor_override": 5},
    ],
    ids=str,
)
def test_average_pools(options, method, image):
    net = Block(nn.AvgPool2d(3, **options)).eval()
    same = hotswap.convert(net, "target", "guide", guide_scale=0, method=method, example_inputs=image)
    close(same(image), net(image))
    converted = swap(net, method=method, learn_scale=True)
    x, guide = net.parts(image)
    stride, padding, ceil = options.get("stride", 3), options.get("padding", 0), options.get("ceil_mode", False)
    sliding = {"stride": stride, "padding": padding, "ceil_mode": ceil}
    kernel = pac_ops.packernel2d(resized(guide, x.shape[2:]), None, 3, **sliding)[0]
    ones = pac_ops.pacpool2d(torch.ones_like(x), torch.ones_like(kernel), 3, **sliding)
    weighted = pac_ops.pacpool2d(x, kernel, 3, **sliding)
    close(converted(image), weighted * net.target(torch.ones_like(x)) / ones)
    converted(image).sum().backward()
    assert converted.target.guide_log_scale.grad.abs() > 0
    hotswap.calibrate(converted, [image], deviation=0.2)
    assert type(hotswap.revert(converted).target) is nn.AvgPool2d
    wide, exact = image.double(), hotswap.convert(net.double(), "target", "guide", guide_scale=0, method=method)
    torch.testing.assert_close(
        exact(wide), net(wide), rtol=1e-12, atol=1e-12
    )  # its divisor is not rounded to float32


def test_inspect_lists_what_can_be_swapped_like_a_convolution(image):
    net = nn.Sequential(conv(3), nn.AvgPool2d(3), nn.AvgPool2d(2), nn.ConvTranspose2d(8, 4, 3, stride=2), Scaled())
    listed = {conv.path: conv for conv in hotswap.inspect(net[:4], image).convolutions}
    assert list(listed) == ["0", "1", "3"]
    assert (listed["1"].in_channels, listed["1"].out_channels, listed["1"].parameters) == (8, 8, 0)
    assert listed["3"].multiply_adds == 9 * 8 * 4 * 2 * 1


def test_even_windows_are_refused_for_every_kind():
    for layer in (nn.AvgPool2d(2), nn.ConvTranspose2d(8, 8, 4, 2), StdConv2d(8, 8, 2)):
        with pytest.raises(hotswap.HotswapError, match="even and has no centre"):
            swap(Block(layer))


def test_plans_of_every_kind_are_saved(tmp_path, image):
    for target in (StdConv2d(8, 8, 3), nn.ConvTranspose2d(8, 8, 3), nn.AvgPool2d(3)):
        net = Block(target).eval()
        converted = swap(net)
        hotswap.save(converted, tmp_path / "a.safetensors")
        close(hotswap.load(tmp_path / "a.safetensors", model=net)(image), converted(image))


@pytest.mark.parametrize("name", ["nf_resnet26", "mixnet_s"])
def test_timm_networks_of_such_convolutions(name):
    net = timm.create_model(name, num_classes=3).eval()
    image = torch.randn(1, 3, 64, 64)
    converted = hotswap.convert(net, guide_scale=0, example_inputs=image)
    with torch.no_grad():
        assert (converted(image) - net(image)).norm() <= 1e-4 * net(image).norm() + 1e-6


def test_lora_wrapped_convolutions(image):
    peft = pytest.importorskip("peft")
    net = Block(conv()).eval()
    wrapped = peft.get_peft_model(
        net, peft.LoraConfig(r=2, target_modules=["target"], init_lora_weights=False)
    ).eval()
    base = wrapped.base_model.model
    converted = swap(base, ["target.base_layer", "target.lora_A.default"])
    merged = Block(conv()).eval()
    merged.load_state_dict(base.state_dict(), strict=False)
    with torch.no_grad():
        merged.target.weight.copy_(base.target.base_layer.weight + base.target.get_delta_weight("default"))
        merged.target.bias.copy_(base.target.base_layer.bias)
    close(converted(image), swap(merged)(image))
