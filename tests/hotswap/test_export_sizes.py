"""Exported files at sizes other than the example's: small random networks, swapped in random ways, in both formats."""

import random

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hotswap
from hotswap.trying import difference, tensors

CHANNELS = 3
EXAMPLES = [(37, 50), (32, 32), (48, 31)]
OTHERS = [(1, 64, 96), (2, 17, 33), (3, 30, 26), (1, 41, 75)]  # batch, height, width


class Network(nn.Module):
    """A map at full size and one that is coarser, in one of many ways: what there is to guide with, and to swap."""

    def __init__(self, choose):
        super().__init__()
        step = choose.choice([2, 3, 4])
        self.fine = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.down = choose.choice(
            [
                nn.Conv2d(CHANNELS, CHANNELS, 3, stride=step, padding=1),
                nn.MaxPool2d(step),
                nn.MaxPool2d(2, step, ceil_mode=True),
                nn.MaxPool2d(3, step, 1, ceil_mode=True),
                nn.AvgPool2d(3, step, 1, ceil_mode=True, count_include_pad=False),
            ]
        )
        size, dilation = choose.choice([(1, 3), (3, 1)]), choose.choice([1, 2])
        self.target = nn.Conv2d(CHANNELS, CHANNELS, size, padding="same", dilation=dilation, padding_mode="replicate")

    def coarse(self, x):
        return self.target(self.down(self.fine(x).relu()))


class ToTheImage(Network):
    """Enlarged to the image's size."""

    def __init__(self, choose):
        super().__init__(choose)
        self.how = ("bilinear", choose.random() < 0.4)

    def forward(self, x):
        return F.interpolate(self.coarse(x), x.shape[2:], None, *self.how)


class ByAFactor(Network):
    """Enlarged by a factor, whole or not, so that the result's size need not be the image's."""

    def __init__(self, choose):
        super().__init__(choose)
        self.factor = choose.choice([2, 3, 2.7, (2, 3.5)])
        self.how = choose.choice([("bilinear", False, False), ("bilinear", True, False), ("bilinear", False, True)])

    def forward(self, x):
        return F.interpolate(self.coarse(x), None, self.factor, *self.how)


class UNet(Network):
    """Enlarged twice, with what was there before added."""

    def forward(self, x):
        fine = self.fine(x).relu()
        half = F.max_pool2d(fine, 2, ceil_mode=True)
        low = self.target(self.down(half))
        half = half + F.interpolate(low, size=half.shape[-2:], mode="bilinear")
        return fine + F.interpolate(half, size=fine.shape[-2:], mode="bilinear", align_corners=True)


class Pyramid(Network):
    """Averages of areas that do not divide the map, as pyramid pooling has them."""

    def forward(self, x):
        y = self.coarse(x)
        pooled = F.interpolate(F.adaptive_avg_pool2d(y, (2, 3)), size=y.shape[2:], mode="bilinear")
        return F.interpolate(y + pooled, size=x.shape[2:], mode="bilinear")


class Transposed(Network):
    """Enlarged by a transposed convolution with bilinear weights, as FCN has it."""

    def __init__(self, choose):
        super().__init__(choose)
        self.up = nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, 2, 1, groups=CHANNELS, bias=False).requires_grad_(False)
        tent = torch.tensor([0.25, 0.75, 0.75, 0.25])
        self.up.weight.copy_((tent[:, None] * tent).expand_as(self.up.weight))

    def forward(self, x):
        return self.up(self.coarse(x))


# One by default: an export takes up to 18 s of a core.
SEEDS = [seed if seed < 1 else pytest.param(seed, marks=pytest.mark.slow) for seed in range(40)]
KINDS = [ToTheImage, ByAFactor, UNet, Pyramid, Transposed]


def random_network(seed):
    """A network, swapped; and what was done, in words."""
    choose = random.Random(seed)  # noqa: S311 (for a test)
    torch.manual_seed(seed)
    with torch.no_grad():
        net = KINDS[seed % len(KINDS)](choose).eval()
    targets = choose.choice([["resize"], ["resize"], ["target"]])
    guide = choose.choice(["input", "fine", ["input", "fine"]])
    options = {
        "guide_scale": choose.choice([0.5, 2.0]),
        "learn_scale": choose.random() < 0.3,
        "footprint": choose.choice([2, 2, 2, 4]),
        "resize": choose.choice(["area", "area", "bilinear", "nearest"]),
        "method": choose.choice(["fx", "hooks"]),
    }
    swapped = hotswap.convert(net, targets, guide, example_inputs=torch.rand(2, 3, 37, 50), **options)
    return swapped, f"seed {seed}: {net}, {targets}, {guide}, {options}"


def load(path):
    """A function from an image to the tensors that the file gives for it."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda x: tensors(program(x))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})]


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_networks_are_right_at_every_size_that_is_open(tmp_path, seed, suffix):
    net, said = random_network(seed)
    path = tmp_path / f"net{suffix}"
    example = torch.rand(1, 3, *EXAMPLES[seed % len(EXAMPLES)])
    made = hotswap.export(net, path, example_inputs=example)
    assert len(made.tried) >= 4, said
    (axes,) = made.inputs
    if seed == 0:
        assert axes == ("batch", 3, "height", "width"), f"{said}: {made.fixed}"
    assert bool(made.fixed) == (axes != ("batch", 3, "height", "width")), said  # what is not open is said
    run = load(path)
    for batch, *others in OTHERS:
        size = [given if isinstance(own, str) else own for own, given in zip(axes[2:], others, strict=True)]
        image = torch.rand(batch, 3, *size)
        with torch.no_grad():
            gap = difference(run(image), tensors(net(image)))
        assert gap < 1e-4, f"{said}: off by {gap:.1e} at {batch} x 3 x {size[0]} x {size[1]}"
