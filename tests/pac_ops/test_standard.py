"""The operators written in PyTorch's own operations, as exporters get them."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from layer_cases import CASES, output

import pac_ops
from pac_ops import standard

OPEN = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}


class Enlarge(torch.nn.Module):
    def __init__(self, footprint):
        super().__init__()
        self.footprint = footprint

    def forward(self, x, guide):
        residual = self.footprint != 4
        return pac_ops.pacresize2d(x, guide, footprint=self.footprint, residual=residual, bounded=residual)


class Weights(torch.nn.Module):
    def forward(self, guide, coarse):
        distance = pac_ops.resize_distance2d(guide, coarse, footprint=4)
        return pac_ops.resize_kernel2d(distance, coarse.shape[2:], residual=True)


def check(layer, arguments, others, *, at_once=False):
    """No operator of ours is left, `at_once` or once decomposed; results are the same, at other sizes too."""
    shapes = tuple(None if x is None else OPEN for x in arguments)
    with torch.no_grad():
        program = torch.export.export(layer, arguments, dynamic_shapes=shapes)
        assert at_once != any("pac_ops" in str(node.target) for node in program.graph.nodes)
        program = program.run_decompositions(standard.decompositions())
        assert not [node for node in program.graph.nodes if "pac_ops" in str(node.target)]
        for given in (arguments, others):
            torch.testing.assert_close(output(program.module()(*given)), output(layer(*given)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["conv, depthwise", "conv, asymmetric", "transpose, groups", "pool, channel-wise"])
def test_layers_at_any_size(name):
    case = CASES[name]
    check(case.layer(), case.arguments(), case.arguments(batch=3, height=14, width=11))


def test_a_pool_in_ceil_mode_at_sizes_of_one_kind():  # where the last window ends depends on the size's remainder
    case = CASES["pool, ceil"]
    check(case.layer(), case.arguments(), case.arguments(batch=3, height=13, width=12))


@pytest.mark.parametrize("footprint", [2, 6, (4, 2)])
def test_enlargement_at_any_size(footprint):
    first, other = ((torch.rand(b, 3, h, w), torch.rand(b, 2, 4 * h, 3 * w)) for b, h, w in ((2, 5, 4), (3, 7, 6)))
    check(Enlarge(footprint), first, other, at_once=True)


def test_weights_of_an_enlargement_at_any_size():
    first, other = ((torch.rand(b, 2, 4 * h, 3 * w), torch.rand(b, 2, h, w)) for b, h, w in ((2, 5, 4), (3, 7, 6)))
    check(Weights(), first, other)


def test_half_precision():
    case = CASES["conv"]
    layer, arguments = case.layer(dtype=torch.bfloat16), case.arguments(dtype=torch.bfloat16)
    program = torch.export.export(layer, arguments).run_decompositions(standard.decompositions())
    actual = program.module()(*arguments)
    assert actual[0].dtype == torch.bfloat16
    torch.testing.assert_close(output(actual), output(layer(*arguments)), rtol=2e-2, atol=2e-2)


def test_nearest_pixels_are_pytorchs():
    """Runtimes round the ratio of two sizes otherwise than PyTorch: 8 of 30 is such a pair in onnxruntime."""
    nearest = standard.decompositions()[torch.ops.aten.upsample_nearest2d.vec]
    for n, wanted in itertools.product((1, 2, 3, 7, 8, 13, 29, 100), range(1, 120)):
        image = torch.arange(float(n)).view(1, 1, n, 1).expand(1, 1, n, 2)
        assert torch.equal(nearest(image, (wanted, 5), None), F.interpolate(image, (wanted, 5))), (n, wanted)
