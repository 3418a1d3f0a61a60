"""What exported files are made of: few operations, of kinds that every runtime has."""

from collections import Counter

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

import hotswap
from hotswap.exporting.program import exported_program

COMPARISONS = {"And", "Or", "Xor", "Not", "Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
MOST_AXES = 5


class Enlarging(nn.Module):
    """A map enlarged 8 times: of open sizes, the image is then made to fit."""

    def __init__(self):
        super().__init__()
        self.coarse = nn.Conv2d(3, 5, 8, 8)
        self.target = nn.Conv2d(5, 5, 3, padding=1)

    def forward(self, x):
        return F.interpolate(self.target(self.coarse(x)), scale_factor=8, mode="bilinear")


class ToTheImage(Enlarging):
    """A map enlarged to the image's size, which is no multiple of its own."""

    def forward(self, x):
        return F.interpolate(self.target(self.coarse(x)), size=x.shape[2:], mode="bilinear")


class ToAGuide(Enlarging):
    """A map enlarged 8 times, to what is known to be the size of its guide."""

    def __init__(self):
        super().__init__()
        self.wide, self.fine = nn.Conv2d(3, 64, 8, 8), nn.PixelShuffle(8)

    def forward(self, x):
        return self.fine(self.wide(x)) * F.interpolate(self.target(self.coarse(x)), scale_factor=8, mode="bilinear")


def exported(tmp_path, net, image, **options):
    """The ONNX model of a network with the shapes of all its tensors."""
    made = hotswap.export(net, tmp_path / "net.onnx", example_inputs=image, **options)
    assert not made.fixed
    return onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "net.onnx"))


def added(swapped, plain):
    """How many operations a swap adds."""
    kinds = [Counter(node.op_type for node in model.graph.node) for model in (swapped, plain)]
    return sum(kinds[0].values()) - sum(kinds[1].values())


def check_operations(model):
    """No comparisons, no infinite constants, no tensors of many axes, no casts to what a tensor is already."""
    graph = model.graph
    known = {x.name: x.type.tensor_type for x in (*graph.input, *graph.value_info, *graph.output)}
    assert not {node.op_type for node in graph.node} & COMPARISONS
    assert all(len(shape.shape.dim) <= MOST_AXES for shape in known.values())
    assert not [node for node in graph.node if node.op_type == "Cast" and _idle(node, known)]
    for constant in graph.initializer:
        assert torch.from_numpy(numpy_helper.to_array(constant).copy()).isfinite().all(), constant.name


def _idle(node, known):
    (wanted,) = (attribute.i for attribute in node.attribute if attribute.name == "to")
    return node.input[0] in known and known[node.input[0]].elem_type == wanted


@pytest.mark.parametrize(
    ("kind", "dynamic", "footprint", "most"),
    [
        (Enlarging, False, 2, 25),
        (Enlarging, False, (6, 4, 2), 80),
        (ToAGuide, True, 2, 49),
        (ToTheImage, True, 2, 60),
        (Enlarging, True, 2, 87),
        (ToTheImage, True, (6, 4, 2), 231),
    ],
)
@torch.no_grad()
def test_an_enlargement(tmp_path, kind, dynamic, footprint, most):
    net, image = kind().eval(), torch.rand(1, 3, 64, 96)
    guide = "fine" if kind is ToAGuide else "input"
    swapped = hotswap.convert(
        net, "resize_*", guide, guide_scale=3.0, example_inputs=image, footprint=footprint, space=None
    )
    model = exported(tmp_path, swapped, image, dynamic=dynamic)
    check_operations(model)
    assert added(model, exported(tmp_path, net, image, dynamic=dynamic)) <= most


class Twice(Enlarging):
    """Two maps that are enlarged alike, whose tables are the same."""

    def forward(self, x):
        coarse = self.coarse(x)
        maps = (F.interpolate(m, scale_factor=8, mode="bilinear") for m in (self.target(coarse), coarse.sigmoid()))
        return torch.cat([*maps], dim=1)


@pytest.mark.parametrize("footprint", [2, (6, 4, 2)])
@torch.no_grad()
def test_two_enlargements_alike(tmp_path, footprint):
    net, image = Twice().eval(), torch.rand(1, 3, 32, 48)  # whose tables are so small that the exporter shares them
    swapped = hotswap.convert(
        net, "resize_*", "input", guide_scale=3.0, example_inputs=image, footprint=footprint, space=None
    )
    exported(tmp_path, swapped, image, dynamic=False)  # which compares it with PyTorch


class Convolving(nn.Module):
    """A convolution behind the guide's."""

    def __init__(self):
        super().__init__()
        self.guide, self.target = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.target(self.guide(x))


@pytest.mark.parametrize(("dynamic", "most"), [(False, 35), (True, 45)])
@torch.no_grad()
def test_a_convolution(tmp_path, dynamic, most):
    net, image = Convolving().eval(), torch.rand(1, 3, 16, 24)
    swapped = hotswap.convert(net, "target", "guide", guide_scale=2.0, example_inputs=image)
    model = exported(tmp_path, swapped, image, dynamic=dynamic)
    check_operations(model)
    assert added(model, exported(tmp_path, net, image, dynamic=dynamic)) <= most


@pytest.mark.parametrize("targets", ["target", "resize"])
@torch.no_grad()
def test_exported_programs_of_fixed_sizes(targets):
    net, image = (Convolving() if targets == "target" else Enlarging()).eval(), torch.rand(1, 3, 32, 48)
    guide = "guide" if targets == "target" else "input"
    swapped = hotswap.convert(net, targets, guide, guide_scale=2.0, example_inputs=image)
    program = exported_program(swapped, (image,), None)
    for node in program.graph.nodes:
        assert not str(node.target).startswith("aten.to."), node  # casts to what they are already
        found = node.meta.get("val")
        if isinstance(found, torch.Tensor):
            assert found.dim() <= MOST_AXES, node
            assert found.dtype != torch.bool, node


class OfManySizes(nn.Module):
    """What is worked out of two sizes: nearest pixels, areas, and places with align_corners, guided."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        y = F.adaptive_avg_pool2d(self.coarse(F.interpolate(self.fine(x), size=(24, 40))), (7, 9))
        return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=True)


@torch.no_grad()
def test_places_of_known_sizes_are_constants():
    image = torch.rand(1, 3, 60, 100)
    swapped = hotswap.convert(OfManySizes().eval(), "resize_*", "input", example_inputs=image)
    program = exported_program(swapped, (image,), None)
    worked_out = {torch.ops.aten.arange, torch.ops.aten.floor, torch.ops.aten.clamp, torch.ops.aten.clamp_max}
    assert not [node for node in program.graph.nodes if getattr(node.target, "overloadpacket", None) in worked_out]
    torch.testing.assert_close(program.module()(image), swapped(image), rtol=1e-4, atol=1e-5)


class Overwriting(nn.Module):
    """A guide that is written to, by itself or by a part of it, before its last target has read it."""

    def __init__(self, write):
        super().__init__()
        self.guide, self.write = nn.Conv2d(3, 4, 3, padding=1), write
        self.first, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        made = self.guide(x)
        out = self.first(made.sigmoid())
        self.write(made)
        return self.last(out) + made


WRITERS = {
    "nothing": lambda x: None,
    "itself": lambda x: x.relu_(),
    "a part": lambda x: x.chunk(2, 1)[0].mul_(3),
    "a view": lambda x: x.view(1, 4, -1).add_(1),
}


@pytest.mark.parametrize("written", WRITERS)
@torch.no_grad()
def test_guides_are_copied_only_where_they_are_written_to(written):
    torch.manual_seed(0)
    net, image = Overwriting(WRITERS[written]).eval(), torch.rand(1, 3, 16, 24)
    swapped = hotswap.convert(
        net, ["first", "last"], "guide", guide_scale=2.0, example_inputs=image, after_activation=False
    )
    program = exported_program(swapped, (image,), None)
    copies = [node for node in program.graph.nodes if node.target is torch.ops.aten.clone.default]
    assert bool(copies) == (written != "nothing")
    torch.testing.assert_close(program.module()(image), swapped(image))


@pytest.mark.parametrize("targets", ["resize", "output_guided"])
@torch.no_grad()
def test_constants_of_lab_are_not_detached(targets):
    net, image = Enlarging().eval(), torch.rand(1, 3, 32, 48)
    swapped = hotswap.convert(net, targets, "input", space=hotswap.GuideSpace("lab"), example_inputs=image)
    program = exported_program(swapped, (image,), None)
    assert not program.graph.find_nodes(op="call_function", target=torch.ops.aten.detach_.default)
    torch.testing.assert_close(program.module()(image), swapped(image), rtol=1e-4, atol=1e-4)
