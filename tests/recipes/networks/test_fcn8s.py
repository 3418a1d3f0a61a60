"""FCN-8s: names, sizes, and the two forms that share weights."""

import pytest
import torch
from torchvision.models import vgg16

import hotswap
from recipes.networks.fcn8s import FCN8s

HIDDEN = 16  # in place of 4096, of which nearly all parameters are


@pytest.fixture(scope="module")
def network() -> FCN8s:
    torch.manual_seed(0)
    network = FCN8s(num_classes=3, hidden=HIDDEN).eval()
    for score in (network.score_fr, network.score_pool3, network.score_pool4):
        torch.nn.init.normal_(score.weight, std=0.01)
    return network


def test_names_are_the_published_ones(network):
    convolutions = [f"conv{s}_{i}" for s, n in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)) for i in range(1, n + 1)]
    biased = [*convolutions, "fc6", "fc7", "score_fr", "score_pool3", "score_pool4"]
    expected = {f"{name}.{part}" for name in biased for part in ("weight", "bias")}
    expected |= {f"{name}.weight" for name in ("upscore2", "upscore_pool4", "upscore8")}
    assert set(network.state_dict()) == expected


@pytest.mark.parametrize("padding", [1, 100])
@pytest.mark.parametrize("size", [(64, 64), (97, 65)])
def test_any_size_comes_back(network, padding, size):
    form = FCN8s(num_classes=3, padding=padding, hidden=HIDDEN).eval()
    form.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert form(torch.randn(1, 3, *size)).shape == (1, 3, *size)


def test_enlargement_starts_bilinear(network):
    x = torch.randn(1, 3, 5, 6)
    with torch.no_grad():
        enlarged = network.upscore8(x)
    expected = torch.nn.functional.interpolate(x, scale_factor=8, mode="bilinear")
    inside = (..., slice(4, -4), slice(4, -4))  # at the rim it fades where interpolation repeats the last pixel
    torch.testing.assert_close(enlarged[inside], expected[inside])


def test_takes_vgg16():
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in vgg16().state_dict().items()}
    weights = {name: torch.randn(shape) for name, shape in shapes.items() if not name.startswith("classifier.6")}
    filled = FCN8s()
    filled.load_vgg16(weights)
    assert torch.equal(filled.conv3_3.weight, weights["features.14.weight"])
    assert torch.equal(filled.fc6.weight, weights["classifier.0.weight"].view(4096, 512, 7, 7))
    with pytest.raises(KeyError, match="features.0"):
        filled.load_vgg16({})


def test_the_papers_swap(network):
    image = torch.randn(1, 3, 97, 65)
    targets = ["conv3_3", "conv4_3", "conv5_3"]
    swapped = hotswap.convert(network, targets, guide="conv2_2", example_inputs=image)
    with torch.no_grad():
        torch.testing.assert_close(swapped(image), network(image), rtol=1e-3, atol=1e-4)


def test_other_paddings_are_refused():
    with pytest.raises(ValueError, match="padding must be 1 or 100, got 3"):
        FCN8s(padding=3)
    with pytest.raises(ValueError, match="padding must be 1 with interpolate=True, got 100"):
        FCN8s(padding=100, interpolate=True)


def test_an_interpolation_differs_from_upscore8_at_the_border_alone(network):
    form = FCN8s(num_classes=3, hidden=HIDDEN, interpolate=True).eval()
    assert network.state_dict().keys() - form.state_dict().keys() == {"upscore8.weight"}
    form.load_state_dict({name: x for name, x in network.state_dict().items() if name != "upscore8.weight"})
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, usual = form(image), network(image)
    inside = (..., slice(4, -4), slice(4, -4))
    torch.testing.assert_close(ours[inside], usual[inside])
    assert not torch.allclose(ours, usual, atol=1e-2 * float(usual.abs().max()))
