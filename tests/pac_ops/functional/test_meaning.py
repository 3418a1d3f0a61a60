"""That the oracle itself is PAC: the equation spelt out, torchvision's deformable convolution, torch.nn."""

import math

import pytest
import torch
import torchvision
from oracle import CASES, Case, assert_close, pairs
from torch import nn

import pac_ops
from pac_ops.geometry import Window, all_taps

pytestmark = pytest.mark.filterwarnings("ignore:a 1x1 window")


def test_the_oracle_is_the_equation():
    """v'_i = sum_j K(f_i, f_j) W[p_i - p_j] v_j + b, pixel by pixel in plain Python."""
    case = Case(
        batch=1, height=5, width=4, kernel_size=(3, 5), stride=(2, 1), padding=(1, 4), dilation=(1, 2), groups=2
    )
    x = case.inputs(torch.float64)
    v, f, w, b = x["input"][0], x["guide"][0], x["weight"], x["bias"]
    actual = case.run(x, "reference")["output"][0]
    (kh, kw), (sy, sx), (py, px), (dy, dx) = case.window
    per_group_in, per_group_out = case.channels // case.groups, case.out_channels // case.groups

    def at(image, channel, y, x):
        inside = 0 <= y < case.height and 0 <= x < case.width
        return image[channel, y, x].item() if inside else 0.0

    for o in range(actual.shape[0]):
        for y in range(actual.shape[1]):
            for x_ in range(actual.shape[2]):
                total = b[o].item()
                ci, cj = y * sy - py + kh // 2 * dy, x_ * sx - px + kw // 2 * dx
                for i in range(kh):
                    for j in range(kw):
                        pi, pj = y * sy - py + i * dy, x_ * sx - px + j * dx
                        d = sum((at(f, g, ci, cj) - at(f, g, pi, pj)) ** 2 for g in range(f.shape[0]))
                        k = math.exp(-0.5 * d)
                        for c in range(per_group_in):
                            channel = o // per_group_out * per_group_in + c
                            total += k * w[o, c, i, j].item() * at(v, channel, pi, pj)
                assert actual[o, y, x_].item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if c.batch], ids=str)
@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float64]))
def test_deform_conv2d_with_zero_offsets_and_mask_k(backend, dtype, case):
    """An oracle nobody here wrote: output, and gradients to input, K, weight and bias."""
    x = case.inputs(dtype)
    kernel = case.kernel(x["guide"])
    leaves = [t.detach().requires_grad_() for t in (x["input"], kernel, x["weight"])]
    with pac_ops.use_backend(backend):
        ours = pac_ops.pacconv2d(*leaves, x["bias"], *case.window[1:], case.groups)
        gradients = torch.autograd.grad(ours, leaves, x["grad"])
    b, _, kh, kw, ho, wo = kernel.shape
    again = [t.detach().double().requires_grad_() for t in leaves]
    theirs = torchvision.ops.deform_conv2d(
        again[0],
        torch.zeros(b, 2 * kh * kw, ho, wo, dtype=torch.float64),
        again[2],
        None if x["bias"] is None else x["bias"].double(),
        case.stride,
        case.padding,
        case.dilation,
        mask=again[1].flatten(1, 3),
    )
    expected = torch.autograd.grad(theirs, again, x["grad"].double())
    assert_close(ours.detach(), theirs.detach(), dtype, "output")
    for name, a, e in zip(("input", "kernel", "weight"), gradients, expected, strict=True):
        assert_close(a, e, dtype, name)


def test_padding_modes_pad_the_guide_too():
    layer = pac_ops.PacConv2d(2, 2, 3, padding=1, padding_mode="reflect", dtype=torch.float64)
    x, guide = torch.randn(1, 2, 6, 6, dtype=torch.float64), torch.randn(1, 3, 6, 6, dtype=torch.float64)
    padded = [nn.functional.pad(t, (1, 1, 1, 1), mode="reflect") for t in (x, guide)]
    inner = pac_ops.pacconv2d(padded[0], pac_ops.packernel2d(padded[1])[0], layer.weight, layer.bias)
    torch.testing.assert_close(layer(x, guide), inner)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_taps_outside_the_image_read_zeros(case):
    window = Window(*case.window)
    ones = torch.ones(1, 1, case.height, case.width)
    (kh, kw), (ho, wo) = window.kernel_size, window.output_size(case.height, case.width)
    seen = nn.functional.unfold(ones, *(case.window[i] for i in (0, 3, 2, 1))).view(kh, kw, ho, wo)
    assert torch.equal(all_taps(ones, window)[0, 0], seen)


def test_identical_pixels_have_distance_exactly_zero():
    guide = torch.randn(1, 7, 1, 1).expand(1, 7, 9, 9)
    distance = pac_ops.squared_distance2d(guide, 3)
    assert torch.equal(distance, torch.zeros_like(distance))
