"""The CRF against mean field spelt out with dense matrices, its weights' names and starts, and a real picture."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from memory_use import largest_tensor
from torch import nn

from pac_ops import PacCRF, PacCRFLoose, create_position_feats, create_YXRGB, refine
from pac_ops.crf import mean_field
from pac_ops.crf.pairwise import PairwiseKernel
from pac_ops.standard import decompositions
from recipes import landwater

D = torch.float64


def picture(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, 3, *size, generator=generator, dtype=D) * 255


# --- brute force --------------------------------------------------------------------------------------------


def dense_mean_field(logits, image, *, sxy, compat, bi_sxy, srgb, bi_compat, steps, symmetric):
    """Kraehenbuehl and Koltun, every pixel to every pixel, itself included: Q and compat as in the usual library."""
    _, c, h, w = logits.shape
    rows, columns = torch.meshgrid(torch.arange(h, dtype=D), torch.arange(w, dtype=D), indexing="ij")
    position = torch.stack([rows, columns]).flatten(1).T
    colour = image[0].flatten(1).T
    unary, total = logits[0].flatten(1), 0
    matrices = []
    for features, weight in (
        (position / sxy, compat),
        (torch.cat([position / bi_sxy, colour / srgb], 1), bi_compat),
    ):
        k = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
        if symmetric:
            root = k.sum(1).rsqrt()
            k = root[:, None] * k * root
        matrices.append((weight, k))
    log_q = unary
    for _ in range(steps):
        q = log_q.softmax(0)
        total = sum(weight * q @ k for weight, k in matrices)
        log_q = unary + total
    return log_q.view(1, c, h, w)


@pytest.mark.parametrize("symmetric", [True, False])
def test_from_densecrf_is_dense_mean_field_where_the_window_covers_the_image(symmetric):
    logits, image = torch.randn(1, 4, 7, 9, dtype=D), picture((7, 9))
    # The window reaches 8 pixels on either side, the whole image, and at most 2.5 sigma: no tap is spread.
    parameters = {"gaussian_sxy": 2.0, "bilateral_sxy": 4.0, "bilateral_srgb": 60.0}
    weights = (
        {"gaussian_compat": 1.5, "bilateral_compat": 2.5}
        if symmetric
        else {"gaussian_compat": 0.1, "bilateral_compat": 0.2}
    )
    crf = PacCRF.from_densecrf(
        4, **parameters, **weights, kernel_size=17, blur=1, num_steps=4, symmetric_normalization=symmetric
    ).double()
    assert all(spec.dilation == 1 for spec in crf.specs)
    expected = dense_mean_field(
        logits,
        image,
        sxy=2.0,
        compat=weights["gaussian_compat"],
        bi_sxy=4.0,
        srgb=60.0,
        bi_compat=weights["bilateral_compat"],
        steps=4,
        symmetric=symmetric,
    )
    torch.testing.assert_close(crf.refine(logits, image), expected, rtol=1e-5, atol=1e-5)  # weights start in float32
    assert (expected - logits).abs().max() > 0.1


def test_from_densecrf_agrees_with_a_dense_crf_library():
    densecrf = pytest.importorskip(
        "pydensecrf.densecrf", reason="pip install pydensecrf2 (it needs a C++ compiler) to compare with it"
    )
    image, _, logits = aegean(size=(60, 80), coarse=4)
    unary = -F.log_softmax(logits, 1)[0].flatten(1)
    theirs = densecrf.DenseCRF2D(80, 60, 2)
    theirs.setUnaryEnergy(unary.numpy().copy(order="C"))
    theirs.addPairwiseGaussian(sxy=3, compat=3)
    pixels = image[0].permute(1, 2, 0).to(torch.uint8).numpy().copy(order="C")
    theirs.addPairwiseBilateral(sxy=10, srgb=13, rgbim=pixels, compat=10)
    expected = torch.tensor(np.array(theirs.inference(5))).view(2, 60, 80)
    ours = refine(logits, image, bilateral_sxy=10.0, kernel_size=41, blur=1).softmax(1)[0]
    # The library's lattice approximates its Gaussians, and ours stop at two sigma: 0.9965 and 0.0027 when written.
    assert (ours.argmax(0) == expected.argmax(0)).float().mean() > 0.99
    assert (ours - expected).abs().mean() < 0.01


@pytest.mark.parametrize(("blur", "dilation"), [(1, 3), (2, 2), (4, 1)])
def test_without_normalisation_a_tap_counts_for_the_pixels_it_stands_for(blur, dilation):
    """The bilateral message far from the border, on one colour, is about the dense one however it is sampled."""
    options = {"gaussian_compat": 0.0, "bilateral_sxy": 8.0, "bilateral_compat": 1.0, "num_steps": 1}
    crf = PacCRF.from_densecrf(2, **options, blur=blur, symmetric_normalization=False).double()
    assert crf.specs[1].dilation == dilation
    logits, image = torch.randn(1, 2, 48, 48, dtype=D), torch.full((1, 3, 48, 48), 100.0, dtype=D)
    position = create_position_feats((48, 48), 8.0, dtype=D)[0].flatten(1).T
    dense = logits.softmax(1)[0].flatten(1) @ torch.exp(-0.5 * torch.cdist(position, position) ** 2)
    ratio = (crf.refine(logits, image) - logits)[0] / dense.view(2, 48, 48)
    assert ratio[:, 20:28, 20:28].mean() == pytest.approx(1, abs=0.1)  # what two sigma leave, and sampling


@pytest.mark.parametrize("rows", [16, 17, 18, 19])
def test_a_pooled_pixel_partly_outside_the_image_keeps_its_message(rows):
    """A pooled pixel of a colour of its own hears itself alone: after normalisation its Q, whatever its size."""
    crf = PacCRF(2, 1, fixed_weighting=True).double()
    crf.add_pairwise_kernel(3, 1, 4, "potts", False, 1.0, True)
    crf.messengers[0].weight.fill_(1.0)
    cells = [torch.arange(n).div(4, rounding_mode="floor") for n in (rows, 16)]
    feature = (cells[0][:, None] * 100.0 + cells[1] * 1000.0).to(D)[None, None]
    message = crf(torch.zeros(1, 2, rows, 16, dtype=D), [feature])
    torch.testing.assert_close(message, torch.full_like(message, 0.5))


def test_position_features_of_a_narrow_image_tell_all_pixels_apart():
    image = torch.zeros(1, 3, 320, 1, dtype=torch.bfloat16)
    assert create_YXRGB(image, 3.0, 13.0)[0, 0].unique().numel() == 320
    assert all(f[0, 0].unique().numel() == 320 for f in PacCRF.from_densecrf(2).dense_features.of(image))


def test_kernels_by_position_and_as_dataclass():
    loose = PacCRFLoose(3, 2, pairwise_kernels=[PairwiseKernel(5, compat_type="potts")])
    loose.add_pairwise_kernel(3)
    assert [tuple(m.weight.shape) for m in loose.steps[1].messengers] == [(1, 1, 5, 5), (3, 3, 3, 3)]


def spelt_out_step(crf, unary, log_q, features):
    """One step of mean field, spelt out with unfold, without symmetric normalisation."""
    result = unary * crf.unary_weight
    q = log_q.softmax(1)
    b, c, height, width = q.shape
    for index, (spec, feature) in enumerate(zip(crf.specs, features, strict=True)):
        k, d, blur = spec.kernel_size, spec.dilation, spec.blur
        bottom, right = -height % blur, -width % blur
        small = F.avg_pool2d(F.pad(q, (0, right, 0, bottom)), blur)
        ones = F.avg_pool2d(F.pad(torch.ones_like(feature), (0, right, 0, bottom)), blur)
        f = F.avg_pool2d(F.pad(feature, (0, right, 0, bottom)), blur) / ones  # over existing pixels only
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
        result = result - weight * message[:, :, :height, :width]
    return result


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


# --- one channel, and impossible classes ---------------------------------------------------------------------


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


# --- in bands ------------------------------------------------------------------------------------------------


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
def test_refining_in_bands_is_the_whole_to_the_bit(channels, size, monkeypatch):
    logits, image = torch.randn(2, channels, 10, 8), picture((40, 37)).float().expand(2, -1, -1, -1)
    logits = F.interpolate(logits, size=size)
    logits[0, 0, 3, 3] = -torch.inf
    options = {"bilateral_sxy": 12.0, "kernel_size": 5, "blur": 3, "num_steps": 2}
    whole = refine(logits, image, **options)
    monkeypatch.setattr(mean_field, "MOST_HELD", 0)
    for taps in (25 * 37 * 2 * 3, 25 * 37 * 2 * 17):
        monkeypatch.setattr(mean_field, "TAPS_OF_A_BAND", taps)
        assert torch.equal(refine(logits, image, **options), whole)


def test_no_kernel_of_the_whole_is_held(monkeypatch):
    logits, image = torch.randn(1, 2, 16, 16), picture((64, 64)).float()
    run = partial(refine, logits, image, num_steps=1)
    plane = image[0, 0].nbytes
    assert largest_tensor(run) == 121 * plane
    monkeypatch.setattr(mean_field, "MOST_HELD", 121 * 64 * 64)
    monkeypatch.setattr(mean_field, "TAPS_OF_A_BAND", 121 * 64)
    assert largest_tensor(run) < 8 * plane  # what is seen of position and colour


# --- weights ------------------------------------------------------------------------------------------------

# compat_type, spatial_filter, fixed_weighting -> the shape of the messenger's weight, whether it and w are learned
STATE = [
    ("4d", True, False, (3, 3, 5, 5), True, False),
    ("2d", True, False, (1, 1, 5, 5), True, False),
    ("2d", False, False, (1, 1, 5, 5), False, False),
    ("potts", True, False, (1, 1, 5, 5), True, False),
    ("potts", False, False, (1, 1, 5, 5), False, True),
    ("potts", False, True, (1, 1, 5, 5), False, False),
    ("na", True, False, (3, 3, 5, 5), True, False),
]


@pytest.mark.parametrize(("compat_type", "spatial_filter", "fixed", "shape", "filter_learns", "weight_learns"), STATE)
def test_state_dict(compat_type, spatial_filter, fixed, shape, filter_learns, weight_learns):
    crf = PacCRF(3, fixed_weighting=fixed)
    crf.add_pairwise_kernel(5, compat_type=compat_type, spatial_filter=spatial_filter, pairwise_weight=1.5)
    state = {k: tuple(v.shape) for k, v in crf.state_dict().items()}
    expected = {"unary_weight": (), "messengers.0.weight": shape, "pairwise_weights.0": ()}
    assert state == expected | ({"compat.0.weight": (3, 3, 1, 1)} if compat_type == "2d" else {})
    learned = {name for name, _ in crf.named_parameters()}
    assert ("messengers.0.weight" in learned) is filter_learns
    assert ("pairwise_weights.0" in learned) is weight_learns
    assert ("unary_weight" in learned) is not fixed
    assert crf.state_dict()["pairwise_weights.0"] == (-1.5 if compat_type == "potts" else 1.5)
    if compat_type == "2d":
        assert torch.equal(crf.compat[0].weight[:, :, 0, 0], 1 - torch.eye(3))
    loose = PacCRFLoose(3, 2, fixed_weighting=fixed)
    loose.add_pairwise_kernel(kernel_size=5, compat_type=compat_type, spatial_filter=spatial_filter)
    assert {k: tuple(v.shape) for k, v in loose.state_dict().items()} == {
        f"steps.{t}.{name}": size for t in range(2) for name, size in crf_shapes(crf).items()
    }


def crf_shapes(crf):
    return {k: tuple(v.shape) for k, v in crf.state_dict().items()}


def test_starting_filters():
    crf = PacCRF(3)
    for options in ({"compat_type": "potts"}, {"compat_type": "potts", "spatial_filter": False}, {}):
        crf.add_pairwise_kernel(5, **options)
    gaussian, ones, full = (m.weight.detach() for m in crf.messengers)
    row = torch.exp(-0.5 * ((torch.arange(5) - 2) / 1.25) ** 2)
    plane = torch.outer(row, row)
    plane = plane * 25 / plane.sum()
    plane[2, 2] = 0
    torch.testing.assert_close(gaussian[0, 0], plane)
    assert ones.sum() == 24
    assert ones[0, 0, 2, 2] == 0
    torch.testing.assert_close(full, (1 - torch.eye(3))[:, :, None, None] * plane)
    assert not isinstance(crf.messengers[1].weight, nn.Parameter)


def test_perturbed_init():
    plain, perturbed = (
        PacCRF(3, perturbed_init=p, pairwise_kernels=[{}]).messengers[0].weight for p in (False, True)
    )
    off = (perturbed - plain).abs()
    assert 0.0003 < off.max() <= 0.0005


def test_state_dict_loads_into_another():
    crf = PacCRF.from_densecrf(3)
    other = PacCRF.from_densecrf(3, gaussian_compat=9, bilateral_compat=9)
    logits, image = torch.randn(1, 3, 24, 24), picture((24, 24)).float()
    assert not torch.allclose(crf.refine(logits, image), other.refine(logits, image))
    other.load_state_dict(crf.state_dict())
    torch.testing.assert_close(crf.refine(logits, image), other.refine(logits, image))


# --- features -----------------------------------------------------------------------------------------------


def test_features():
    position = create_position_feats((4, 5), (2.0, 10.0), batch=3, dtype=D)
    assert position.shape == (3, 2, 4, 5)
    assert position[1, 0, 3, 2] == 1.5
    assert position[2, 1, 0, 4] == 0.4
    image = torch.rand(2, 3, 4, 5)
    features = create_YXRGB(image, 2.0, 0.5)
    assert torch.equal(features[:, 2:], image / 0.5)
    torch.testing.assert_close(features[:, :2], create_position_feats((4, 5), 2.0, batch=2))


def test_scales_learn():
    image = torch.rand(1, 3, 6, 6, dtype=D)
    yx, rgb = (torch.tensor(x, dtype=D, requires_grad=True) for x in ([3.0, 2.0], [0.3, 0.4, 0.5]))
    crf = PacCRF(2, 1, pairwise_kernels=[{"compat_type": "potts"}]).double()
    unary = torch.randn(1, 2, 6, 6, dtype=D)

    def run(yx, rgb):
        return crf(unary, [create_YXRGB(image, yx, rgb)])

    assert torch.autograd.gradcheck(run, (yx, rgb))


# --- PyTorch's paths ----------------------------------------------------------------------------------------


def test_gradients():
    crf = PacCRF(2, 2, pairwise_kernels=[{"blur": 2}, {"compat_type": "2d"}]).double()
    crf.add_pairwise_kernel(3, compat_type="potts", spatial_filter=False, symmetric_normalization=True)
    unary = torch.randn(1, 2, 3, 5, dtype=D, requires_grad=True)
    features = [torch.randn(1, 1, 3, 5, dtype=D, requires_grad=True) for _ in range(3)]
    names, values = zip(*crf.named_parameters(), strict=True)

    def run(unary, *rest):
        return torch.func.functional_call(crf, dict(zip(names, rest[3:], strict=True)), (unary, list(rest[:3])))

    assert torch.autograd.gradcheck(run, (unary, *features, *values))


def test_compiles_copies_and_autocasts():
    crf = PacCRF.conv_crf(3, 2)
    logits, image = torch.randn(1, 3, 24, 20), picture((24, 20)).float()
    expected = crf.refine(logits, image)
    torch.testing.assert_close(copy.deepcopy(crf).refine(logits, image), expected)
    torch._dynamo.reset()
    compiled = torch.compile(crf, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, crf.dense_features.of(image)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = crf.refine(logits, image)
    assert (narrow - expected).norm() / expected.norm() < 0.02


def test_sharp_steps_do_not_overflow_in_half_precision():
    logits, image = torch.randn(1, 3, 24, 20).half(), picture((24, 20)).half()
    out = refine(logits, image)
    assert out.dtype == torch.float16
    assert out.isfinite().all()


# --- a real picture -----------------------------------------------------------------------------------------


def aegean(size=(224, 304), coarse=16):
    """Islands from above: image 0..255, which pixels are land, and the logits of a labelling that is coarse by 16."""
    y, x = landwater.pixel(36, 24)
    rows, columns = slice(y - size[0] // 2, y + size[0] // 2), slice(x - size[1] // 2, x + size[1] // 2)
    image = torch.tensor(landwater.picture()[rows, columns]).permute(2, 0, 1)[None].float()
    label = torch.tensor(landwater.land()[rows, columns]).bool()
    share = F.interpolate(F.avg_pool2d(label[None, None].float(), coarse), size=size, mode="bilinear").clamp(
        0.05, 0.95
    )
    return image, label, torch.cat([(1 - share).log(), share.log()], 1)


def boundary_accuracy(logits, label):
    """The share of right pixels within 8 of the boundary."""
    near = F.max_pool2d(label[None].float(), 17, 1, 8) + F.max_pool2d(1 - label[None].float(), 17, 1, 8) == 2
    return (logits.argmax(1) == label)[near].float().mean().item()


def test_a_refined_boundary_is_closer_to_the_truth():
    """When this was written: 0.886 unrefined, 0.929 by default, 0.927 with a small dense window, 0.915 as Conv-CRF."""
    image, label, logits = aegean()
    unrefined = boundary_accuracy(logits, label)
    assert boundary_accuracy(refine(logits, image), label) > unrefined + 0.02
    fine = refine(logits, image, bilateral_sxy=10.0, kernel_size=21, blur=1)
    assert boundary_accuracy(fine, label) > unrefined + 0.03
    assert boundary_accuracy(PacCRF.conv_crf(2).refine(logits, image), label) > unrefined + 0.02


# --- errors -------------------------------------------------------------------------------------------------

U, FEATURES = torch.zeros(1, 3, 6, 6), [torch.zeros(1, 2, 6, 6)]


def crf():
    return PacCRF(3, pairwise_kernels=[{}])


WRONG = {
    "compat_type": (ValueError, lambda: crf().add_pairwise_kernel(compat_type="3d"), "compat_type must be one of .*got '3d'"),
    "even window": (ValueError, lambda: crf().add_pairwise_kernel(4), r"kernel_size must be odd.*got \(4, 4\)"),
    "blur": (ValueError, lambda: crf().add_pairwise_kernel(blur=0), "blur must be a positive integer, got 0"),
    "spatial filter": (ValueError, lambda: crf().add_pairwise_kernel(spatial_filter=False), 'spatial_filter must be True .*"4d"'),
    "symmetric": (ValueError, lambda: crf().add_pairwise_kernel(symmetric_normalization=True), "needs compat_type .*got '4d'"),
    "channels": (ValueError, lambda: PacCRF(0), "channels must be a positive integer, got 0"),
    "num_steps": (ValueError, lambda: PacCRF(3, 0), "num_steps must be a positive integer, got 0"),
    "loose num_steps": (ValueError, lambda: PacCRFLoose(3, -1), "num_steps must be a positive integer, got -1"),
    "final_output": (ValueError, lambda: PacCRF(3, final_output="Q"), "final_output must be one of .*got 'Q'"),
    "loose final_output": (ValueError, lambda: PacCRFLoose(3, final_output="Q"), "final_output must be one of .*got 'Q'"),
    "unary channels": (ValueError, lambda: crf()(U[:, :2], FEATURES), "unary must have 3 channels, got 2"),
    "unary rank": (ValueError, lambda: crf()(U[0], FEATURES), r"unary must be \[batch.*got \[3, 6, 6\]"),
    "features type": (TypeError, lambda: crf()(U, FEATURES[0]), "features must be a list of tensors.*got Tensor"),
    "features count": (ValueError, lambda: crf()(U, []), "features must hold one map a pairwise kernel, 1, got 0"),
    "feature size": (ValueError, lambda: crf()(U, [FEATURES[0][..., 1:]]), r"features\[0\] must be \[1, G, 6, 6\], got"),
    "feature device": (ValueError, lambda: crf()(U, [FEATURES[0].to("meta")]), r"features\[0\] must be on the unary's device"),
    "no image features": (ValueError, lambda: crf().refine(U, U), "not made by from_densecrf or conv_crf"),
    "image channels": (ValueError, lambda: refine(U, torch.zeros(1, 4, 6, 6)), "image must have 3 channels, got 4"),
    "image rank": (ValueError, lambda: refine(U, torch.zeros(3, 6, 6)), r"image must be \[batch.*got \[3, 6, 6\]"),
    "logit nan": (ValueError, lambda: refine(U * torch.nan, U), "^logits must be finite, or -inf where .*: got nan$"),
    "logit inf": (ValueError, lambda: refine(U + torch.inf, U), r"^logits must be finite, .*: got \+inf$"),
    "no class": (ValueError, lambda: refine(U - torch.inf, U), "^logits must be finite, .* -inf of all classes$"),
    "binary nan": (ValueError, lambda: refine(U[:, :1] * torch.nan, U), "^logits must be finite, .*: got nan$"),
    "image nan": (ValueError, lambda: refine(U, U * torch.nan), "^image must be finite, got nan or inf in it$"),
    "sxy": (ValueError, lambda: refine(U, U, gaussian_sxy=0), "gaussian_sxy must be positive, got 0"),
    "scales": (ValueError, lambda: create_position_feats((4, 4), torch.ones(3)), "scales must hold 1 number or 2, got 3"),
    "rgb scale": (ValueError, lambda: create_YXRGB(U, 1.0, torch.ones(2)), "rgb_scale must hold 1 number or 3, got 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_line(name):
    kind, run, message = WRONG[name]
    with pytest.raises(kind, match=message) as error:
        run()
    assert "\n" not in str(error.value)
