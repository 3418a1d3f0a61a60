"""What a guide can be: a module, the image itself, several of them, one for each target."""

import json

import networks
import pytest
import torch
import torch.nn.functional as F
import torchvision
from swap_by_hand import close, pac
from torch import nn
from torchvision.models.vgg import make_layers

import hotswap
from hotswap.surgery.rewriting import CODE
from hotswap.targets.plan import Plan

SCALE = 0.8


@pytest.fixture
def image():
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def swap(net, targets, guide, **keywords):
    keywords.setdefault("example_inputs", torch.rand(1, 3, 12, 10))
    return hotswap.convert(net.eval(), targets, guide, guide_scale=SCALE, **keywords)


def forward(net, x, guide):
    """networks.Plain with its target guided by `guide`, a function of the image and the activation "guide"."""
    g = F.relu(net.guide(F.relu(net.stem(x))))
    return net.head(F.relu(pac(net.target, net.pool(g), guide(x, g))))


GUIDES = {
    "image": ("input", lambda x, g: F.interpolate(x, (6, 5), mode="bilinear", align_corners=False)),
    "several": (
        ["input", "guide"],
        lambda x, g: F.interpolate(torch.cat([x, g], 1), (6, 5), mode="bilinear", align_corners=False),
    ),
    "by target": ({"target": "guide"}, lambda x, g: g),
    "by pattern": ({"tar*": ["guide"]}, lambda x, g: g),
}


@pytest.mark.parametrize("name", GUIDES)
def test_guides_against_the_swap_spelt_out(name, image):
    guide, spelt_out = GUIDES[name]
    net = networks.Plain()
    close(swap(net, "target", guide)(image), forward(net, image, spelt_out))


def test_a_channel_from_each_of_several_sources_at_their_own_sizes(image):
    """Sources of two sizes: each is resized to the target's, then their squared distances are added."""
    net = networks.Plain()
    converted = swap(net, "target", ["pool", "input"])

    def spelt_out(x, g):
        small = F.interpolate(x, (6, 5), mode="bilinear", align_corners=False)
        return torch.cat([net.pool(g), small], 1)

    close(converted(image), forward(net, image, spelt_out))


def test_modules_stand_for_their_paths():
    net = networks.Plain()
    options = {"example_inputs": torch.rand(1, 3, 12, 10)}
    by_name = hotswap.plan(net, "target", {"target": ["guide", "input"]}, **options)
    assert hotswap.plan(net, net.target, {net.target: [net.guide, "input"]}, **options) == by_name
    assert hotswap.plan(net, [net.target], [net.guide, "input"], **options) == by_name


def test_a_mapping_takes_every_name_of_a_target_and_exact_names_win():
    vgg = networks.thin_vgg11()
    guide = {"re:conv3_.": "input", "*": "conv1_1", "conv4_1": "conv2_1", vgg[18]: ["auto", "input"], "8": "3"}
    plan = hotswap.plan(vgg, ["conv3_*", "conv4_*", "conv5_2"], guide)
    assert {s.target_alias: s.guide_name for s in plan.swaps} == {
        "conv3_1": "input", "conv3_2": "conv2_1", "conv4_1": "conv2_1", "conv4_2": "conv1_1",
        "conv5_2": "conv2_1 + input",
    }  # fmt: skip
    assert "conv2_1 (3) + input" in str(plan)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_auto_is_a_name_for_targets_in_mappings_too():
    vgg = networks.thin_vgg11()
    plan = hotswap.plan(vgg, ["auto", "conv3_1"], {"auto": "conv1_1", "*": "input"}, guide_scale={"auto": 2, "*": 3})
    assert {s.target_alias: (s.guide_name, s.guide_scale) for s in plan.swaps} == {
        "conv3_2": ("conv1_1", 2), "conv4_2": ("conv1_1", 2), "conv5_2": ("conv1_1", 2), "conv3_1": ("input", 3),
    }  # fmt: skip


def test_the_image_is_what_the_network_received():
    """Not what its backbone did: the network around it normalises the image, in place."""

    class Normalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = networks.Plain()

        def forward(self, image):
            image.sub_(0.5).mul_(4)
            return self.body(image)

    net = Normalising()
    converted = swap(net, "body.target", "input")
    assert CODE in converted.__dict__  # the edit is where the image is known
    assert CODE not in converted.body.__dict__
    x = torch.rand(2, 3, 12, 10)
    expected = forward(
        net.body, (x - 0.5) * 4, lambda *_: F.interpolate(x, (6, 5), mode="bilinear", align_corners=False)
    )
    close(converted(x.clone()), expected)
    assert hotswap.status(converted).plan.swaps[0].guide == ("input",)
    assert torch.equal(hotswap.revert(converted)(x.clone()), net(x.clone()))


def test_a_method_that_gets_the_image_itself_is_rewritten_rather_than_forward(image):
    net = networks.Methods()
    converted = swap(net, "target", "input")  # its forward cannot be traced
    assert converted.forward_features(image).shape == (2, 8, 12, 10)
    close(converted.forward_features(image), pac(net.target, F.relu(net.guide(image)), image))

    class Changing(networks.Methods):
        def forward(self, x):
            return self.forward_features(x * 2).mean((2, 3))

    changing = Changing()
    close(
        swap(changing, "target", "input")(image),
        pac(changing.target, F.relu(changing.guide(2 * image)), image).mean((2, 3)),
    )


def test_gradients_reach_the_image():
    converted = swap(networks.Plain(), "target", "input", learn_scale=True)
    x = torch.randn(1, 3, 12, 10, requires_grad=True)
    converted(x).sum().backward()
    assert x.grad.abs().max() > 0
    assert converted.target.guide_log_scale.grad.abs() > 0


@torch.no_grad()
def test_real_networks_compile_with_the_image_as_guide():
    net = torchvision.models.resnet18(num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64)
    converted = hotswap.convert(net, "auto", ["input", "auto"], guide_scale=0.1, example_inputs=x)
    torch._dynamo.reset()
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    close(compiled(x), converted(x))
    assert not torch.allclose(converted(x), net(x), rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("resize", ["bilinear", "area", "nearest"])
def test_odd_sizes_of_pooling_in_ceil_mode(resize):
    """Crop 449 of the paper's VGG, thinner: maps of 449, 225, 113, 57 and 29 pixels."""
    torch.manual_seed(0)
    layout = [2, 2, "M", 3, 3, "M", 4, 4, 4, "M", 4, 4, 4, "M", 4, 4, 4, "M"]
    net = make_layers(layout).eval()
    for layer in net:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    x = torch.randn(1, 3, 449, 449)
    converted = hotswap.convert(
        net, "auto", "auto", guide_scale=SCALE, resize=resize, example_inputs=torch.empty_like(x)
    )
    plan = hotswap.status(converted).plan
    assert [s.target_alias for s in plan.swaps] == ["conv3_3", "conv4_3", "conv5_3"]
    assert {s.guide_alias for s in plan.swaps} == {("conv2_2",)}
    targets = {int(s.target) for s in plan.swaps}
    how = {"mode": resize} | ({"align_corners": False} if resize == "bilinear" else {})
    sizes, y, guide = [], x, x
    for index, layer in enumerate(net):
        if index in targets:
            sizes.append(y.shape[-1])
            y = pac(layer, y, F.interpolate(guide, y.shape[2:], **how))
        else:
            y = layer(y)
        if index == 8:  # the ReLU after conv2_2
            guide = y
    assert sizes == [113, 57, 29]
    close(converted(x), y)


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_images_of_bytes_guide_a_network_that_normalises_them_itself(method):
    class Bytes(networks.Plain):
        def forward(self, x):
            return super().forward(x.float() / 255)

    def swapped(kind, images, scale):
        torch.manual_seed(0)
        options = {"guide_scale": scale, "method": method, "example_inputs": images}
        return hotswap.convert(kind().eval(), "target", "input", **options)

    images = torch.randint(0, 256, (2, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    of_bytes, of_floats = swapped(Bytes, images, 0.01), swapped(networks.Plain, images / 255, 2.55)
    torch.testing.assert_close(of_bytes(images), of_floats(images / 255))
    assert 0.1 < hotswap.verify(of_bytes, images).targets[0].deviation < 0.9
    assert hotswap.calibrate(of_bytes, images).targets[0].deviation == pytest.approx(0.3, abs=0.01)
