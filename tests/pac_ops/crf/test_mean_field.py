"""Mean-field steps: the formula, one channel, impossible classes, and K made in bands."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from crf_pictures import picture
from memory_use import largest_tensor

from pac_ops import PacCRF, PacCRFLoose, refine
from pac_ops.crf import mean_field
from pac_ops.standard import decompositions

D = torch.float64


def spelt_out_step(crf, unary, log_q, features):
    """One step of mean field, spelt out with unfold, without symmetric normalisation."""
    result = unary * crf.unary_weight
    q = log_q.softmax(1)
    b, c, height, width = q.shape
    for index, (spec, feature) in enumerate(zip(crf.specs, features, strict=True)):
        k, d, blur = spec.kernel_size, spec.dilation, spec.blur
        (top, bottom), (left, right) = (split(-size % blur) for size in (height, width))
        around = (left, right, top, bottom)
        ones = F.avg_pool2d(F.pad(torch.ones(1, 1, height, width, dtype=q.dtype), around), blur)
        small, f = (F.avg_pool2d(F.pad(x, around), blur) / ones for x in (q, feature))  # over existing pixels only
        h, w = small.shape[2:]
        taps = F.unfold(small, k, d, k // 2 * d).view(b, c, k * k, h, w)
        f_j = F.unfold(f, k, d, k // 2 * d).view(b, -1, k * k, h, w)
        kernel = torch.exp(-0.5 * (f_j - f[:, :, None]).square().sum(1, keepdim=True))
        if spec.compat_type == "na":
            kernel = torch.ones_like(kernel)
        weight = crf.messengers[index].weight
        if weight.shape[0] == 1:
            message = (taps * kernel * weight.view(1, 1, k * k, 1, 1)).sum(2)
        else:
            message = torch.einsum("bcthw,oct->bohw", taps * kernel, weight.flatten(2))
        if spec.compat_type == "2d":
            message = torch.einsum("bchw,oc->bohw", message, crf.compat[index].weight[:, :, 0, 0])
        if blur > 1:
            message = F.interpolate(message, scale_factor=blur, mode="bilinear")
        weight = dict(crf.pairwise_weights.state_dict())[str(index)]
        result = result - weight * message[:, :, top : top + height, left : left + width]
    return result


@pytest.mark.parametrize(("size", "blur"), [((5, 5), 2), ((5, 5), 4), ((7, 9), 4), ((3, 10), 7)])
@pytest.mark.parametrize("options", [{"compat_type": "potts"}, {"compat_type": "2d"}, {"compat_type": "4d"}], ids=str)
def test_a_blur_that_does_not_divide_the_size_sends_what_a_uniform_map_has(size, blur, options):
    """Pixels past the border are no zeros: where all pixels are alike, so are all averages, at any size."""
    probabilities = torch.tensor([0.2, 0.3, 0.5], dtype=D)
    crf = PacCRF(3, 1, pairwise_kernels=[{**options, "blur": blur, "spatial_filter": False}]).double()
    crf.messengers[0].weight.data.zero_()[..., 1, 1] = 1.0  # windows at the border miss nothing
    unary, even = (probabilities.log().view(1, 3, 1, 1).expand(1, 3, *n) for n in (size, (blur, blur)))
    features, even_features = (torch.ones(1, 2, *n, dtype=D) for n in (size, (blur, blur)))
    expected = crf(even, [even_features])[:, :, :1, :1].expand_as(unary)
    torch.testing.assert_close(crf(unary, [features]), expected)


def split(missing):
    """What a size lacks to be a multiple of blur: before the first pixel, and after the last."""
    return missing - missing // 2, missing // 2


KERNELS = [
    {"compat_type": "4d"},
    {"compat_type": "4d", "kernel_size": 5, "dilation": 2, "pairwise_weight": 0.7},
    {"compat_type": "4d", "blur": 3},
    {"compat_type": "2d", "kernel_size": 5},
    {"compat_type": "2d", "spatial_filter": False, "blur": 2},
    {"compat_type": "potts"},
    {"compat_type": "potts", "spatial_filter": False, "pairwise_weight": 2.0, "blur": 4},
    {"compat_type": "na", "dilation": 2},
]


@pytest.mark.parametrize("kernels", [[k] for k in KERNELS] + [KERNELS[::3]], ids=str)
@pytest.mark.parametrize("kind", [PacCRF, PacCRFLoose])
def test_steps_are_the_formula(kind, kernels):
    crf = kind(3, 2, perturbed_init=True, unary_weight=0.8)
    for options in kernels:
        crf.add_pairwise_kernel(**options)
    crf = crf.double()
    unary = torch.randn(2, 3, 7, 8, dtype=D)
    features = [torch.randn(2, 2, 7, 8, dtype=D) / 2 for _ in kernels]
    steps = crf.steps if kind is PacCRFLoose else [crf, crf]
    expected = unary
    for step in steps:
        expected = spelt_out_step(step, unary, expected, features)
    torch.testing.assert_close(crf(unary, features), expected)


@pytest.mark.parametrize("kind", [PacCRF, PacCRFLoose])
def test_final_output(kind):
    unary, features = torch.randn(1, 3, 6, 6), [torch.randn(1, 2, 6, 6)]
    options = {"channels": 3, "num_steps": 2, "pairwise_kernels": [{"compat_type": "potts"}]}
    log_q, softmax, log_softmax = (
        kind(**options, final_output=name)(unary, features) for name in ("log_Q", "softmax", "log_softmax")
    )
    torch.testing.assert_close(softmax, log_q.softmax(1))
    torch.testing.assert_close(log_softmax, log_q.log_softmax(1))


@pytest.mark.parametrize("kind", [PacCRF, PacCRFLoose])
def test_one_channel_is_a_binary_logit(kind):
    """Against two classes, 0 and x, with the same weights: the difference, or the second class's probability."""
    torch.manual_seed(0)
    unary, features = torch.randn(2, 1, 7, 8, dtype=D) * 3, [torch.randn(2, 2, 7, 8, dtype=D) / 2 for _ in KERNELS]
    unary[0, 0, 2, 3], unary[1, 0, 4, 4] = torch.inf, -torch.inf
    pair = torch.cat([torch.zeros_like(unary), unary], 1)
    pair[0, :, 2, 3] = torch.tensor([-torch.inf, 0])  # certain: the first class is impossible
    for final, taken in (
        ("log_Q", lambda two: two[:, 1:] - two[:, :1]),
        ("softmax", lambda two: two[:, 1:]),
        ("log_softmax", lambda two: two[:, 1:]),
    ):
        options = {"num_steps": 3, "final_output": final, "perturbed_init": True, "pairwise_kernels": KERNELS}
        one, two = kind(1, **options).double(), kind(2, **options).double()
        two.load_state_dict(one.state_dict())
        expected, out = taken(two(pair, features)), one(unary, features)
        assert out.shape == unary.shape
        assert torch.equal(out, expected)
        assert not out.isnan().any()


def test_one_channel_is_exported():
    crf, unary = PacCRF(1, 2, pairwise_kernels=[{}]).eval(), torch.randn(1, 1, 6, 7)
    unary[0, 0, 2, 2], features = torch.inf, [torch.randn(1, 2, 6, 7)]
    program = torch.export.export(crf, (unary, features)).run_decompositions(decompositions())
    torch.testing.assert_close(program.module()(unary, features), crf(unary, features))


@pytest.mark.parametrize("value", [3.0, -3.0])
def test_refining_one_channel_leaves_background_background(value):
    logits, image = torch.full((1, 1, 6, 6), value), picture((24, 23)).float()
    refined = refine(logits, image)
    two = refine(torch.cat([torch.zeros_like(logits), logits], 1), image)
    assert torch.equal(refined, two[:, 1:] - two[:, :1])
    assert refined.shape == (1, 1, 24, 23)
    assert ((refined > 0) == (value > 0)).all()


def test_an_impossible_class_stays_impossible_and_makes_no_nan():
    logits, image = torch.randn(1, 3, 6, 6), picture((24, 24)).float()
    logits[:, 1] = -torch.inf
    refined, without = refine(logits, image), refine(logits[:, [0, 2]], image)
    assert (refined[:, 1] == -torch.inf).all()
    torch.testing.assert_close(refined[:, [0, 2]], without)
    logits = torch.randn(1, 3, 24, 24)
    logits[0, 1, 3, 3] = -torch.inf
    refined = refine(logits, image)
    assert torch.equal(refined == -torch.inf, logits == -torch.inf)
    assert not refined.isnan().any()


@pytest.mark.parametrize("size", [(3, 4), (12, 16), (11, 13)], ids=str)
def test_a_coarse_labelling_without_doubt_is_enlarged_without_nan(size):
    """The log of a one-hot map. Between two labels both are possible; a label that no neighbour has is not."""
    labels = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 1, 1]])
    logits = F.one_hot(labels, 4).permute(2, 0, 1)[None].float().log()
    refined = refine(logits, picture(size).float(), bilateral_compat=0.0, gaussian_compat=0.0)
    share = F.interpolate(logits.exp(), size=size, mode="bilinear")
    assert torch.equal(refined == 0, share > 0)
    assert torch.equal(refined == -torch.inf, share == 0)


def test_half_impossible_neighbours_do_not_count():
    logits = torch.tensor([[[[1.0, -torch.inf]], [[0.0, 0.0]]]])
    refined = refine(logits, picture((1, 8)).float(), bilateral_compat=0.0, gaussian_compat=0.0)
    torch.testing.assert_close(refined[0, 0, 0], torch.tensor([1.0] * 6 + [-torch.inf] * 2))


def test_an_impossible_class_makes_no_gradient_nan():
    crf, unary = PacCRF(3, 2, pairwise_kernels=[{}]), torch.randn(1, 3, 6, 6)
    unary[0, 1, 2, 2] = -torch.inf
    crf(unary, [torch.randn(1, 2, 6, 6)]).softmax(1).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in crf.parameters())


@pytest.mark.parametrize("kind", [PacCRF, PacCRFLoose])
@pytest.mark.parametrize("dtype", [D, torch.float32], ids=str)
def test_bands_are_the_whole(kind, dtype, monkeypatch):
    torch.manual_seed(0)
    crf = kind(3, 2, perturbed_init=True).requires_grad_(False)
    for options in [*KERNELS, {"compat_type": "potts", "blur": 2, "symmetric_normalization": True}]:
        crf.add_pairwise_kernel(**options)
    crf = crf.to(dtype).requires_grad_(False)
    unary = torch.randn(2, 3, 19, 14, dtype=dtype)
    features = [torch.randn(2, 2, 19, 14, dtype=dtype) / 2 for _ in range(len(KERNELS) + 1)]
    whole = crf(unary, features)
    monkeypatch.setattr(mean_field, "MOST_HELD", 0)
    monkeypatch.setattr(mean_field, "TAPS_OF_A_BAND", 1700)  # 7 rows of a 3 x 3 kernel, 2 of a 5 x 5: no divisors
    torch.testing.assert_close(crf(unary, features), whole)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(40, 37), (10, 8)], ids=str)
def test_refining_in_bands_is_the_whole(channels, size, monkeypatch):
    logits, image = torch.randn(2, channels, 10, 8), picture((40, 37)).float().expand(2, -1, -1, -1)
    logits = F.interpolate(logits, size=size)
    logits[0, 0, 3, 3] = -torch.inf
    options = {"bilateral_sxy": 12.0, "kernel_size": 5, "blur": 3, "num_steps": 2}
    whole = refine(logits, image, **options)
    monkeypatch.setattr(mean_field, "MOST_HELD", 0)
    for taps in (25 * 37 * 2 * 3, 25 * 37 * 2 * 17):
        monkeypatch.setattr(mean_field, "TAPS_OF_A_BAND", taps)
        # Not to the bit: which pixels share a vector, whose exponential rounds otherwise, depends on the CPU.
        torch.testing.assert_close(refine(logits, image, **options), whole, rtol=1e-6, atol=2e-6)


def test_no_kernel_of_the_whole_is_held(monkeypatch):
    logits, image = torch.randn(1, 2, 16, 16), picture((64, 64)).float()
    run = partial(refine, logits, image, num_steps=1)
    plane = image[0, 0].nbytes
    assert largest_tensor(run) == 121 * plane
    monkeypatch.setattr(mean_field, "MOST_HELD", 121 * 64 * 64)
    monkeypatch.setattr(mean_field, "TAPS_OF_A_BAND", 121 * 64)
    assert largest_tensor(run) < 8 * plane  # what is seen of position and colour


def test_sharp_steps_do_not_overflow_in_half_precision():
    logits, image = torch.randn(1, 3, 24, 20).half(), picture((24, 20)).half()
    out = refine(logits, image)
    assert out.dtype == torch.float16
    assert out.isfinite().all()
