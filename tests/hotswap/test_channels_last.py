"""A channels-last network stays one when it is converted."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hotswap

LAST = torch.channels_last


class Net(nn.Module):
    """Convolutions, a depthwise one, a pooling, a transposed convolution, and an enlargement of scores."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, padding=2, dilation=2), nn.BatchNorm2d(16), nn.ReLU())
        self.pool, self.up = nn.AvgPool2d(3, 2, 1), nn.ConvTranspose2d(16, 8, 3, 2, 1, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        scores = self.head(self.up(self.pool(self.body(self.depthwise(self.stem(x))))))
        return F.interpolate(scores, size=x.shape[2:], mode="bilinear", align_corners=False)


def formats(network, image):
    """By a module's name, whether what it returns is channels-last."""
    seen, hooks = {}, []
    for name, module in network.named_modules():

        def note(_, __, output, name=name):
            if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[1:]) > 1:
                seen[name] = output.is_contiguous(memory_format=LAST) and not output.is_contiguous()

        hooks.append(module.register_forward_hook(note))
    with torch.no_grad():
        network(image)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_every_module_returns_what_it_returned(method):
    torch.manual_seed(0)
    plain = Net().eval().to(memory_format=LAST)
    image = torch.rand(1, 3, 24, 24)
    example = image.contiguous(memory_format=LAST)
    targets = ["stem.0", "depthwise", "body.0", "pool", "up", "resize_*"]
    swapped = hotswap.convert(plain, targets, "input", example_inputs=example, method=method)
    for given in (example, image):
        expected, actual = formats(plain, given), formats(swapped, given)
        assert any(expected.values())
        assert {name: actual[name] for name in expected} == expected
    swapped = swapped.to(memory_format=torch.contiguous_format)
    assert not any(formats(swapped, image).values())


def test_a_network_of_torchvision_stays_so():
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(0)
    plain = models.get_model("lraspp_mobilenet_v3_large", weights=None, weights_backbone=None)
    plain, image = plain.eval().to(memory_format=LAST), torch.rand(1, 3, 64, 64).contiguous(memory_format=LAST)
    swapped = hotswap.convert(plain, ["paper", "resize_*"], "input", guide_scale=0.1, example_inputs=image)
    expected, actual = formats(plain, image), formats(swapped, image)
    assert sum(expected.values()) > 100
    assert {name: actual[name] for name in expected} == expected
