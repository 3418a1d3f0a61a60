"""The area average: against F.interpolate, in every precision, differentiated, and as exporters get it."""

import pytest
import torch
import torch.nn.functional as F
from oracle import assert_close, pairs

import pac_ops
from pac_ops import standard
from pac_ops.area import area_average2d, fitted2d

SIZES = [((9, 14), (3, 5)), ((7, 5), (7, 5)), ((17, 33), (4, 8)), ((5, 6), (11, 13)), ((12, 8), (1, 3))]


@pytest.mark.parametrize(("fine", "coarse"), SIZES)
def test_it_is_interpolate(fine, coarse):
    x = torch.randn(2, 3, *fine, dtype=torch.float64)
    torch.testing.assert_close(area_average2d(x, coarse), F.interpolate(x, size=coarse, mode="area"))


def test_a_guide_that_is_smaller_is_interpolated():
    x = torch.randn(2, 3, 9, 8)
    expected = F.interpolate(x, size=(10, 5), mode="bilinear")
    torch.testing.assert_close(fitted2d(x, (10, 5)), expected)
    assert fitted2d(x, (9, 8)) is x


@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float16, torch.bfloat16]))
def test_half_precision_is_not_rounded_on_the_way(backend, dtype):
    """A guide gives what the same values in float32 give, and its gradient is that, rounded once."""
    x, guide = torch.randn(2, 3, 5, 4), (torch.randn(2, 6, 20, 16) * 4).to(dtype)
    assert torch.equal(area_average2d(guide, (5, 4)), area_average2d(guide.float(), (5, 4)))
    results = []
    with pac_ops.use_backend(backend):
        for g in (guide.requires_grad_(), guide.detach().float().requires_grad_()):
            out = pac_ops.pacresize2d(x, g, scale=0.2)
            results.append((out.detach(), torch.autograd.grad(out.square().sum(), g)[0].float()))
    (actual, gradient), (expected, expected_gradient) = results
    assert_close(actual, expected, torch.float32, "output")
    assert_close(gradient, expected_gradient, dtype, "gradient")


class Average(torch.nn.Module):
    def forward(self, x, like, fit):
        return (fitted2d if fit else area_average2d)(x, (like.shape[2], like.shape[3]))


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exported_it_is_right_at_every_size(fit, dtype):
    axes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    first, others = SIZES[0], SIZES[1:]
    layer, inputs = Average(), [torch.randn(2, 3, *size).to(dtype) for size in first]
    program = torch.export.export(layer, (*inputs, fit), dynamic_shapes=(axes, axes, None))
    standardised = program.run_decompositions(standard.decompositions()).module()
    for batch, sizes in enumerate((first, *others), 2):
        x, like = (torch.randn(batch, 3, *size).to(dtype) for size in sizes)
        expected = layer(x, like, fit).float()
        for made in (program.module(), standardised):
            actual = made(x, like, fit)
            assert actual.dtype == torch.float32
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
