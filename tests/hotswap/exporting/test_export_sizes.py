"""Exported files at sizes other than the example's: small random networks, swapped in random ways, in both formats."""

import itertools
import random

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hotswap
from hotswap.exporting.open_sizes import OpenSizes
from hotswap.exporting.sizes import difference, tensors

CHANNELS = 2
EXAMPLES = [(37, 50), (32, 32), (48, 31), (30, 45)]
SIZE = (37, 49)  # all are enlarged nearly twice at least, which makes them targets
OTHERS = [(1, 64, 96), (2, 17, 33), (3, 30, 26), (1, 41, 75)]  # batch, height, width
DOWN = [
    lambda step: nn.MaxPool2d(step),
    lambda step: nn.AvgPool2d(3, step, 1, ceil_mode=True),
    lambda step: nn.MaxPool2d(2, step, ceil_mode=True),
    lambda step: nn.Conv2d(CHANNELS, CHANNELS, 3, stride=step, padding=1),
    lambda step: nn.MaxPool2d(3, step, 1, ceil_mode=True),
    lambda step: nn.AvgPool2d((2, 3), step, (1, 0), ceil_mode=True, count_include_pad=False),
    lambda step: nn.AvgPool2d(step, count_include_pad=False),
]


class Network(nn.Module):
    """A map at full size and one that is coarser: what there is to guide with, and to swap."""

    def __init__(self, choose, down):
        super().__init__()
        self.fine = nn.Conv2d(3, CHANNELS, 1)
        self.down = down(choose.choice([2, 3, 4]))
        self.how = choose.choice([("bilinear", False), ("bilinear", True)])

    def coarse(self, x):
        return self.down(self.fine(x))


class ToTheImage(Network):
    """Enlarged to the image's size."""

    def forward(self, x):
        return F.interpolate(self.coarse(x), x.shape[2:], None, *self.how)


class ByAFactor(Network):
    """Enlarged by a factor, whole or not, so that the result's size need not be the image's."""

    def __init__(self, choose, down):
        super().__init__(choose, down)
        step = self.down.stride if isinstance(self.down.stride, int) else self.down.stride[0]
        self.factor = choose.choice([step, max(2, step - 0.1), (step, max(2, step - 0.1))])
        self.recompute = choose.random() < 0.3

    def forward(self, x):
        return F.interpolate(self.coarse(x), None, self.factor, *self.how, recompute_scale_factor=self.recompute)


class ToOneSize(Network):
    """Enlarged to one size, whatever the image's."""

    def forward(self, x):
        return F.interpolate(self.coarse(x), SIZE, None, *self.how)


class UNet(Network):
    """Enlarged twice, with what was there before added."""

    def forward(self, x):
        fine = self.fine(x)
        half = F.max_pool2d(fine, 2, ceil_mode=True)
        half = half + F.interpolate(self.down(half), half.shape[-2:], None, *self.how)
        return fine + F.interpolate(half, size=fine.shape[-2:], mode="bilinear")


class Pyramid(Network):
    """An average of areas that do not divide the map, as pyramid pooling has them."""

    def forward(self, x):
        y = self.coarse(x)
        return y + F.interpolate(F.adaptive_avg_pool2d(y, (2, 3)), y.shape[2:], None, *self.how)


class Transposed(Network):
    """Enlarged by a transposed convolution with bilinear weights, as FCN has it."""

    def __init__(self, choose, down):
        super().__init__(choose, down)
        self.up = nn.ConvTranspose2d(CHANNELS, CHANNELS, 4, 2, 1, groups=CHANNELS, bias=False).requires_grad_(False)
        tent = torch.tensor([0.25, 0.75, 0.75, 0.25])
        self.up.weight.copy_((tent[:, None] * tent).expand_as(self.up.weight))

    def forward(self, x):
        return self.up(self.coarse(x))


class Convolution(Network):
    """A convolution of the coarser map."""

    def __init__(self, choose, down):
        super().__init__(choose, down)
        size, dilation = choose.choice([(1, 3), (3, 1)]), choose.choice([1, 2])
        if choose.random() < 0.5:
            step = choose.choice([1, 2, (1, 3)])
            self.target = nn.Conv2d(CHANNELS, CHANNELS, size, step, 1, dilation)
        else:
            self.target = nn.Conv2d(CHANNELS, 1, size, padding="same", padding_mode="replicate", dilation=dilation)

    def forward(self, x):
        return self.target(self.coarse(x))


ENLARGING = [ToTheImage, ByAFactor, UNet, Transposed, ToOneSize, Pyramid]
SEEDS = range(30)  # the first 8 have every kind of network, all ways down and all guides
TRACED = (0, 2)  # an enlargement and a convolution
# ONNX files of these may be open to no other size: the network branches on its input's. What is no larger than it is to become,
# because another image came, is not enlarged by the guide.
BRANCHING = (Pyramid, ToOneSize)


def random_network(seed):
    """A network, swapped; and what was done, in words."""
    choose = random.Random(seed)  # noqa: S311 (for a test)
    kind = Convolution if seed % 3 == 2 else ENLARGING[(seed - seed // 3) % len(ENLARGING)]
    torch.manual_seed(seed)
    with torch.no_grad():
        net = kind(choose, DOWN[seed % len(DOWN)]).eval()
    guide = ["input", "fine", ["input", "fine"]][seed % 4 % 3]
    options = {
        "guide_scale": choose.choice([0.5, 2.0, 5.0]),
        "learn_scale": choose.random() < 0.3,
        "footprint": 4 if seed % 9 == 4 else 2,
        "resize": choose.choice(["area", "area", "bilinear", "nearest"]),
        "method": choose.choice(["fx", "hooks"]),
    }
    targets = ["target"] if kind is Convolution else ["resize_*"]
    options["gate"] = kind is Convolution and choose.random() < 0.7
    if options["gate"]:
        options |= {"calibrate_on": [torch.rand(2, 3, *SIZE)], "projection": (2, 3)}
    swapped = hotswap.convert(net, targets, guide, example_inputs=torch.rand(2, 3, *SIZE), **options)
    if options["gate"]:
        nn.init.constant_(swapped.target.guide_gate, 0.6)
    return swapped, f"seed {seed}: {net}, {targets}, {guide}, {options}"


def load(path):
    """A function from an image to the tensors that the file gives for it."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda x: tensors(program(x))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {name: x.numpy()})]


def decompose(*_, **__):
    """Takes twice as long as tracing; what is traced needs none, and torch.onnx decomposes for its own table."""
    raise AssertionError("decomposed")


def seeds(suffix, quick):
    """Some, and the others with `-m slow`."""
    slow = pytest.mark.slow
    return [(suffix, seed) if seed in quick else pytest.param(suffix, seed, marks=slow) for seed in SEEDS]


@pytest.mark.parametrize(("suffix", "seed"), [*seeds(".onnx", range(0, 8, 2)), *seeds(".pt2", TRACED)])
def test_random_networks_are_right_at_every_size(tmp_path, monkeypatch, suffix, seed):
    net, said = random_network(seed)
    if suffix == ".pt2" and seed in TRACED:
        monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", decompose)
    path = tmp_path / f"net{suffix}"
    example = torch.rand(1, 3, *EXAMPLES[seed % len(EXAMPLES)])
    made = hotswap.export(net, path, example_inputs=example)
    assert len(made.tried) >= 4, said
    if made.fixed and suffix == ".onnx" and isinstance(net, BRANCHING):
        assert made.inputs == (("batch", 3, *example.shape[2:]),), said
        assert "height, width: with more left open, the file differs from PyTorch" in made.fixed, said
        return
    assert made.inputs == (("batch", 3, "height", "width"),), f"{said}: {made.fixed}"
    assert not made.fixed, said
    run = load(path)
    for size in OTHERS:
        image = torch.rand(size[0], 3, *size[1:])
        with torch.no_grad():
            gap = difference(run(image), tensors(net(image)))
        assert gap < 1e-4, f"{said}: off by {gap:.1e} at {size}"


class Writing(nn.Module):
    """Writes to its input."""

    def __init__(self):
        super().__init__()
        self.target = nn.Conv2d(3, CHANNELS, 3, padding=1)

    def forward(self, x):
        x += 1
        return self.target(x)


@torch.no_grad()
def test_a_network_that_writes_to_its_input_is_held_to_what_it_was_given(tmp_path):
    image = torch.rand(2, 3, 9, 8)
    before = image.clone()
    swapped = hotswap.convert(Writing().eval(), "target", "input", example_inputs=image, guide_scale=2.0)
    made = hotswap.export(swapped, tmp_path / "net.onnx", example_inputs=image)
    assert torch.equal(image, before)
    assert not made.fixed
    assert difference(load(tmp_path / "net.onnx")(image), tensors(swapped(before.clone()))) < 1e-5


class Enlarging(nn.Module):
    """By a factor whose products float32 rounds otherwise than float64: 50 x 2.3 is 114.99999999999999."""

    def __init__(self, factor):
        super().__init__()
        self.target, self.factor = nn.Conv2d(3, CHANNELS, 3, padding=1), factor

    def forward(self, x):
        return F.interpolate(F.max_pool2d(self.target(x), 3), scale_factor=self.factor, mode="bilinear")


@pytest.mark.parametrize(
    ("target", "factor", "fixed"),
    [
        ("resize_1", 1.3, ""),  # sizes by whole numbers: 13 / 10
        ("resize_1", 2.3, "the file rounds 50 x 2.3 to 115, and PyTorch to 114"),
        ("target", 2.3, "the file rounds 50 x 2.3 to 115, and PyTorch to 114"),  # PyTorch's own enlargement, too
        ("target", 1.25, "the file samples 2 pixels x 1.25 anew, which PyTorch copies"),
    ],
)
@torch.no_grad()
def test_factors_that_onnx_rounds_otherwise(tmp_path, target, factor, fixed):
    image = torch.rand(1, 3, 9, 270)
    swapped = hotswap.convert(Enlarging(factor).eval(), target, "input", example_inputs=image)
    made = hotswap.export(swapped, tmp_path / "net.onnx", example_inputs=torch.rand(1, 3, 20, 24))
    assert fixed in made.fixed
    assert bool(made.fixed) == bool(fixed)
    if not fixed:
        assert difference(load(tmp_path / "net.onnx")(image), tensors(swapped(image))) < 1e-5


class Pooling(nn.Module):
    """Of one size, with a pool in ceil mode whose last window would lie in the padding alone.

    PyTorch leaves that out; the shapes that ONNX infers do not, and the product with an average's matrix does not fit.
    """

    def __init__(self, pool):
        super().__init__()
        self.first, self.pool, self.target = nn.Conv2d(3, 3, 1), pool, nn.Conv2d(3, CHANNELS, 3, padding=1)

    def forward(self, x):
        x = self.pool(self.first(x.reshape(x.shape[0], 3, 32, 32)))
        return self.target(F.adaptive_avg_pool2d(x, (2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 3, 1, ceil_mode=True), nn.AvgPool2d(3, 3, 1, ceil_mode=True)])
def test_pools_in_ceil_mode_are_right_in_files_of_one_size(tmp_path, pool):
    image = torch.rand(2, 3, 32, 32)
    swapped = hotswap.convert(Pooling(pool).eval(), "target", "input", example_inputs=image, guide_scale=2.0)
    made = hotswap.export(swapped, tmp_path / "net.onnx", example_inputs=image)
    assert made.inputs == (("batch", 3, 32, 32),)
    assert difference(load(tmp_path / "net.onnx")(image), tensors(swapped(image))) < 1e-5


def test_what_is_written_otherwise_takes_what_pytorch_takes():
    image, counts = torch.rand(2, 3, 5, 7), torch.arange(16).view(1, 1, 4, 4)
    calls = [
        lambda: image.to(),
        lambda: image.to("cpu", torch.float64),
        lambda: image.float(memory_format=torch.channels_last),
        lambda: image.long(memory_format=torch.preserve_format),
        lambda: image.to(counts),
        lambda: F.max_pool2d(counts, 3, 2, ceil_mode=True),
    ]
    for call in calls:
        expected = call()
        with OpenSizes():
            found = call()
        assert found.dtype == expected.dtype
        assert found.stride() == expected.stride()
        assert torch.equal(found, expected)


def test_pools_in_ceil_mode_are_those_of_pytorch_at_every_size():
    windows = itertools.product(range(4, 12), (1, 2, 3, 4), (1, 2, 3), (0, 1, 2))
    for size, kernel, stride, padding in windows:
        options = {"kernel_size": kernel, "stride": stride, "padding": min(padding, kernel // 2), "ceil_mode": True}
        image = torch.rand(1, 2, size, size + 1)
        for pool in (nn.MaxPool2d(**options), nn.AvgPool2d(**options, count_include_pad=stride > 1)):
            with OpenSizes():
                found = pool(image)
            torch.testing.assert_close(found, pool(image), msg=f"{pool} of {size}")


def test_average_pools_by_another_divisor_are_those_of_pytorch():
    for size, kernel, stride, ceil_mode in itertools.product(range(4, 9), ((2, 3), 3), (1, 2, 3), (False, True)):
        pool = nn.AvgPool2d(kernel, stride, 1, ceil_mode, divisor_override=7)
        image = torch.rand(1, 2, size, size + 1)
        with OpenSizes():
            found = pool(image)
        torch.testing.assert_close(found, pool(image), msg=f"{pool} of {size}")


@torch.no_grad()
def test_average_pools_by_another_divisor_are_exported(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 3, 3), nn.AvgPool2d(3, 1, padding=1, divisor_override=7)).eval()
    made = hotswap.export(network, tmp_path / "net.onnx", example_inputs=torch.rand(1, 3, 12, 17))
    assert made.inputs == (("batch", 3, "height", "width"),)


class Branching(nn.Module):
    """With a branch on what is no range of one side."""

    def __init__(self, condition):
        super().__init__()
        self.conv, self.condition = nn.Conv2d(3, CHANNELS, 3, padding=1), condition

    def forward(self, image):
        return self.conv(image * 0.5 - 0.2 if self.condition(*image.shape) else image)


@torch.no_grad()
@pytest.mark.parametrize(
    "condition",
    [
        lambda batch, channels, height, width: batch * channels * height * width > 60,  # also all that is tried
        lambda batch, channels, height, width: height * width > 6000,
        lambda batch, channels, height, width: width > 3 * height,
        lambda batch, channels, height, width: height != 2 * width,
        lambda batch, channels, height, width: batch < 4,
        lambda batch, channels, height, width: (height + width) % 7 == 0,
        lambda batch, channels, height, width: max(height, width) > 200,
    ],
)
def test_branches_on_several_sizes_are_not_taken_for_granted(tmp_path, condition):
    network = Branching(condition).eval()
    made = hotswap.export(network, tmp_path / "net.onnx", example_inputs=torch.rand(2, 3, 20, 20))
    assert made.fixed
    run = load(tmp_path / "net.onnx")
    free = [isinstance(n, str) for n in made.inputs[0]]
    for size in [(2, 20, 20), (1, 20, 20), (5, 2, 2), (1, 80, 80), (1, 9, 40), (1, 30, 15), (1, 15, 17), (1, 8, 220)]:
        shape = [
            n if opened else own for n, opened, own in zip((size[0], 3, *size[1:]), free, (2, 3, 20, 20), strict=True)
        ]
        image = torch.rand(shape)
        assert difference(run(image), tensors(network(image))) < 1e-5
