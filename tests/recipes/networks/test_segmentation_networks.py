"""Segmentation networks as recipes build them: weights of others, and the unit and order of colours they want."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hotswap
from hotswap.errors import HotswapError
from hotswap.zoo import providers
from recipes.networks.fcn8s import FCN8s
from recipes.networks.segmentation import fcn8s, fcn8s_paccrf, segformer

HIDDEN, CLASSES = 8, 3
INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in torchvision's VGG16


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[FCN8s, str]:
    """A trained FCN-8s and its file."""
    torch.manual_seed(0)
    network = FCN8s(CLASSES, hidden=HIDDEN)
    for score in (network.score_fr, network.score_pool3, network.score_pool4):
        nn.init.normal_(score.weight, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "fcn8s.pth"
    torch.save(network.state_dict(), path)
    return network.eval(), str(path)


@pytest.fixture(scope="module")
def vgg16(published, tmp_path_factory) -> str:
    """The same convolutions as torchvision names them."""
    ours = [name for name, _ in published[0].named_modules() if name.startswith("conv")]
    pairs = [
        *zip(ours, [f"features.{i}" for i in INDICES], strict=True),
        ("fc6", "classifier.0"),
        ("fc7", "classifier.3"),
    ]
    state = {}
    for name, theirs in pairs:
        conv = published[0].get_submodule(name)
        state[f"{theirs}.weight"] = conv.weight.detach().flatten(1).clone() if "fc" in name else conv.weight.detach()
        state[f"{theirs}.bias"] = conv.bias.detach()
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(state, path)
    return str(path)


def test_takes_the_layers_of_vgg16(published, vgg16):
    network = fcn8s(CLASSES, hidden=HIDDEN, vgg16=vgg16)
    for name in ("conv1_1", "conv5_3", "fc6", "fc7"):
        assert torch.equal(network.get_submodule(name).weight, published[0].get_submodule(name).weight)
    assert network.score_fr.weight.abs().max() == 0


@pytest.mark.parametrize("padding", [1, 100])
def test_caffes_colours_are_turned_round(published, padding):
    network = fcn8s(CLASSES, padding=padding, hidden=HIDDEN, caffe=published[1]).eval()
    form = FCN8s(CLASSES, padding, HIDDEN).eval()
    form.load_state_dict(published[0].state_dict())
    rgb = 100 * torch.randn(1, 3, 40, 33)
    with torch.no_grad():
        torch.testing.assert_close(network(rgb), form(rgb.flip(1)), rtol=1e-4, atol=1e-4)


def test_a_crf_takes_a_backbone_as_it_is(published):
    network = fcn8s_paccrf(CLASSES, hidden=HIDDEN, dilations=[2], backbone=published[1]).eval()
    image = 100 * torch.randn(1, 3, 40, 33)
    with torch.no_grad():
        assert torch.equal(network.backbone(image), published[0](image))
        assert network(image).shape == (1, CLASSES, 40, 33)
    torch.testing.assert_close(network.unit.flatten(), 255 * torch.tensor(providers.IMAGENET_STD))
    assert {name.split(".")[0] for name in network.state_dict()} == {"backbone", "crf", "feat_scales"}


def test_a_crf_takes_the_backbone_of_a_swapped_networks_file(published, tmp_path):
    image = 100 * torch.randn(1, 3, 40, 33)
    targets = ["conv3_3", "conv4_3", "conv5_3"]
    swapped = hotswap.convert(published[0], targets, guide="conv2_2", example_inputs=image)
    hotswap.save(swapped, tmp_path / "pacfcn.safetensors")
    network = fcn8s_paccrf(CLASSES, hidden=HIDDEN, dilations=(2, 4), backbone=str(tmp_path / "pacfcn.safetensors"))
    assert torch.equal(network.backbone.conv4_3.weight, published[0].conv4_3.weight)
    targets = [f"backbone.{name}" for name in targets]
    again = hotswap.convert(network.eval(), targets, guide="backbone.conv2_2", guide_scale=0.1, example_inputs=image)
    with torch.no_grad():
        assert not torch.allclose(again(image), network(image))


def test_recipes_can_name_them(published):
    spec = f"recipes.networks.segmentation:fcn8s?num_classes={CLASSES}&hidden={HIDDEN}&caffe={published[1]}"
    assert isinstance(providers.build(spec, trusted=True), FCN8s)


def test_segformer_gives_a_quarter_of_the_size():
    network = segformer(CLASSES).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 64, 96)).logits.shape == (1, CLASSES, 16, 24)


def test_what_does_not_fit_is_told_in_one_line(published, vgg16, tmp_path):
    cases = [
        (lambda: fcn8s(vgg16="a", caffe="b"), "vgg16 and caffe are both given; leave one out"),
        (lambda: fcn8s_paccrf(vgg16="a", backbone="b"), "backbone is given together with vgg16 or caffe; leave one out"),
        (lambda: fcn8s(CLASSES, hidden=HIDDEN, vgg16=published[1]), r"does not fit \('features.0.weight'\)"),
        (lambda: fcn8s(CLASSES, hidden=4, vgg16=vgg16), "must be a checkpoint of torchvision's VGG16"),
        (lambda: fcn8s(CLASSES, hidden=HIDDEN, caffe=vgg16), "vgg16.pth"),
        (lambda: fcn8s(CLASSES, hidden=HIDDEN, caffe=str(tmp_path / "none.pth")), "none.pth"),
    ]  # fmt: skip
    for make, message in cases:
        with pytest.raises(HotswapError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_the_crf_trains_over_a_frozen_fcn8s(published):
    network = fcn8s_paccrf(CLASSES, hidden=HIDDEN, dilations=(2, 4), backbone=published[1])
    network.backbone.requires_grad_(False)
    labels = torch.randint(CLASSES, (1, 33, 32))
    F.cross_entropy(network(0.3 * torch.randn(1, 3, 33, 32)), labels).backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert trained == {
        "crf.unary_weight", "crf.messengers.0.weight", "crf.messengers.1.weight", "feat_scales.0", "feat_scales.1",
    }  # fmt: skip
