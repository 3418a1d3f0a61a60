"""A PAC-CRF from a dense CRF's parameters."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from crf_pictures import picture

from pac_ops import PacCRF, create_position_feats, create_YXRGB, refine
from recipes import landwater

D = torch.float64


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
