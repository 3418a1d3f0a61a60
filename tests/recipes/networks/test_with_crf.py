"""A segmentation network with a PAC-CRF: names, starting values, gradients, and what the image does."""

import pytest
import torch
from torch import nn

from recipes.networks.with_crf import WithCRF

SIZE = 40


@pytest.fixture
def network() -> WithCRF:
    torch.manual_seed(0)
    return WithCRF(nn.Conv2d(3, 4, 3, padding=1), num_classes=4, dilations=(2, 8))


def test_names_are_the_published_ones(network):
    expected = {"backbone.weight", "backbone.bias", "crf.unary_weight", "feat_scales.0", "feat_scales.1"}
    expected |= {
        f"crf.{name}.{i}{part}"
        for i in (0, 1)
        for name, part in (("messengers", ".weight"), ("pairwise_weights", ""))
    }
    assert set(network.state_dict()) == expected
    one = WithCRF(nn.Identity(), num_classes=4, dilations=(32,))
    assert {name for name in one.state_dict() if name.startswith("feat")} == {"feat_scales.0"}


def test_is_the_published_crf():
    crf = WithCRF(nn.Identity()).crf
    assert (crf.channels, crf.num_steps) == (21, 5)
    assert [(m.kernel_size, m.dilation, m.padding) for m in crf.messengers] == [
        ((5, 5), (16, 16), (32, 32)),
        ((5, 5), (64, 64), (128, 128)),
    ]


def test_scales_start_at_30_and_divide_the_image(network):
    assert [scale.item() for scale in network.feat_scales] == [30.0, 30.0]
    image = 255 * torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = network.crf(network.backbone(image), [image / 30, image / 30])
        assert torch.equal(network(image), expected)
        assert expected.shape == (2, 4, SIZE, SIZE)
        network.feat_scales[1].fill_(15.0)
        assert not torch.allclose(network(image), expected)


def test_backbone_crf_and_scales_learn(network):
    labels = torch.randint(4, (1, SIZE, SIZE))
    nn.functional.cross_entropy(network(60 * torch.rand(1, 3, SIZE, SIZE)), labels).backward()
    for name in (
        "backbone.weight",
        "crf.messengers.0.weight",
        "crf.messengers.1.weight",
        "feat_scales.0",
        "feat_scales.1",
    ):
        assert network.get_parameter(name).grad.abs().sum() > 0, name


def test_the_crf_learns_with_a_frozen_backbone(network):
    network.backbone.requires_grad_(False)
    image, labels = 60 * torch.rand(1, 3, SIZE, SIZE), torch.randint(4, (1, SIZE, SIZE))
    before = network.backbone.weight.clone()
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    nn.functional.cross_entropy(network(image), labels).backward()
    optimizer.step()
    assert torch.equal(network.backbone.weight, before)
    assert all(scale.item() != 30.0 for scale in network.feat_scales)


def test_scales_of_another_shape_load(network):
    state = network.state_dict() | {"feat_scales.0": torch.tensor([7.0])}
    network.load_state_dict(state)
    assert network.feat_scales[0].item() == 7.0


def test_the_guide_is_in_the_unit_of_0_to_255():
    torch.manual_seed(0)
    std = torch.tensor([0.2, 0.25, 0.5])
    image, mean = torch.rand(1, 3, SIZE, SIZE), torch.rand(3, 1, 1)
    logits = torch.randn(1, 4, SIZE, SIZE)
    pixels = WithCRF(nn.Identity(), num_classes=4, dilations=(2,))
    others = WithCRF(nn.Identity(), num_classes=4, dilations=(2,), std=std.tolist())
    others.load_state_dict(pixels.state_dict())
    pixels.backbone = others.backbone = Constant(logits)
    with torch.no_grad():
        expected = pixels(255 * image)
        torch.testing.assert_close(others((image - mean) / std[:, None, None]), expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(others(image), expected, atol=1e-2)


def test_options_of_the_crf():
    make = {"loose": True, "steps": 3, "kernel_size": 3, "compat_type": "2d", "blur": 2, "channel_scales": True}
    network = WithCRF(nn.Identity(), 4, (2, 1), unary_weight=0.8, fixed_weighting=True, spatial_filter=False, **make)
    shapes = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    assert {name for name in shapes if name.startswith("crf.steps.2.")} == {
        "crf.steps.2.unary_weight",
        *(
            f"crf.steps.2.{part}.{i}{end}"
            for i in (0, 1)
            for part, end in (("messengers", ".weight"), ("compat", ".weight"), ("pairwise_weights", ""))
        ),
    }
    assert shapes["crf.steps.0.messengers.1.weight"] == (1, 1, 3, 3)
    assert (shapes["feat_scales.0"], shapes["crf.steps.0.compat.0.weight"]) == ((3,), (4, 4, 1, 1))
    assert float(network.crf.steps[1].unary_weight) == pytest.approx(0.8)
    trained = {name for name, _ in network.named_parameters()}
    assert not any("unary" in name or "messengers" in name for name in trained)
    with pytest.raises(TypeError, match="hue"):
        WithCRF(nn.Identity(), 4, hue=1)


def test_scales_of_three_colours_divide_each_its_own():
    torch.manual_seed(0)
    logits, image = torch.randn(1, 4, SIZE, SIZE), 255 * torch.rand(1, 3, SIZE, SIZE)
    one, three = (WithCRF(Constant(logits), 4, (2,), channel_scales=channels) for channels in (False, True))
    one.load_state_dict(three.state_dict() | {"feat_scales.0": torch.tensor(30.0)})
    with torch.no_grad():
        torch.testing.assert_close(three(image), one(image))
        three.feat_scales[0][:] = torch.tensor([10.0, 30.0, 90.0])
        scaled = image * torch.tensor([3.0, 1.0, 1 / 3])[:, None, None]
        torch.testing.assert_close(three(image), one(scaled), rtol=1e-4, atol=1e-4)


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value


@pytest.mark.parametrize("std", [(0.2, 0.2), (0.2, 0.0, 0.2)])
def test_std_out_of_range_is_refused(std):
    with pytest.raises(ValueError, match="std must be three positive numbers"):
        WithCRF(nn.Identity(), std=std)


def test_no_kernel_is_refused():
    with pytest.raises(ValueError, match="dilations must hold one number a pairwise kernel"):
        WithCRF(nn.Identity(), dilations=())
