"""The layers of a CRF: names and starts of their weights, kernels, copies, and what they refuse."""

import copy

import pytest
import torch
from crf_pictures import picture
from torch import nn

from pac_ops import PacCRF, PacCRFLoose, create_position_feats, create_YXRGB, refine
from pac_ops.crf.pairwise import PairwiseKernel

D = torch.float64


def test_kernels_by_position_and_as_dataclass():
    loose = PacCRFLoose(3, 2, pairwise_kernels=[PairwiseKernel(5, compat_type="potts")])
    loose.add_pairwise_kernel(3)
    assert [tuple(m.weight.shape) for m in loose.steps[1].messengers] == [(1, 1, 5, 5), (3, 3, 3, 3)]


# compat_type, spatial_filter, fixed_weighting -> the shape of the messenger's weight, whether it and w are learned
STATE = [
    ("4d", True, False, (3, 3, 5, 5), True, False),
    ("2d", True, False, (1, 1, 5, 5), True, False),
    ("2d", False, False, (1, 1, 5, 5), False, False),
    ("potts", True, False, (1, 1, 5, 5), True, False),
    ("potts", False, False, (1, 1, 5, 5), False, True),
    ("potts", False, True, (1, 1, 5, 5), False, False),
    ("na", True, False, (3, 3, 5, 5), True, False),
    ("4d", False, False, (3, 3, 5, 5), True, False),
    ("na", False, True, (3, 3, 5, 5), True, False),
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
    crf = PacCRF(3, perturbed_init=False)
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
    assert 0.0003 < off.max() <= 0.0005001
    first, second = (PacCRF(3, pairwise_kernels=[{}]).messengers[0].weight for _ in range(2))
    assert not torch.equal(first, second)  # as published, without asking


@pytest.mark.parametrize("compat_type", ["4d", "na"])
def test_weights_from_class_to_class_start_alike_with_and_without_spatial_filter(compat_type):
    options = [{"compat_type": compat_type, "spatial_filter": s} for s in (True, False)]
    with_filter, without = PacCRF(3, perturbed_init=False, pairwise_kernels=options).messengers
    assert torch.equal(with_filter.weight, without.weight)


@pytest.mark.parametrize("make", [PacCRF, PacCRFLoose])
def test_a_weight_that_is_not_learned_may_be_missing_from_a_file(make):
    """Published files of `fixed_weighting=True` have no unary_weight; one in a file counts."""
    crf = make(3, 2, fixed_weighting=True, unary_weight=0.8, pairwise_kernels=[{"compat_type": "2d"}])
    other = make(3, 2, fixed_weighting=True, unary_weight=0.5, pairwise_kernels=[{"compat_type": "2d"}])
    published = {name: x for name, x in crf.state_dict().items() if "unary_weight" not in name}
    unary, features = torch.randn(1, 3, 5, 6), [torch.randn(1, 2, 5, 6)]
    before = crf(unary, features)
    copy.deepcopy(crf).load_state_dict(published)
    nn.Sequential(crf).load_state_dict({f"0.{name}": x for name, x in published.items()})
    assert torch.equal(crf(unary, features), before)
    other.load_state_dict(crf.state_dict())
    assert torch.equal(other(unary, features), before)
    with pytest.raises(RuntimeError, match="Missing key.*unary_weight"):
        make(3, 2, pairwise_kernels=[{"compat_type": "2d"}]).load_state_dict(published)


def test_state_dict_loads_into_another():
    crf = PacCRF.from_densecrf(3)
    other = PacCRF.from_densecrf(3, gaussian_compat=9, bilateral_compat=9)
    logits, image = torch.randn(1, 3, 24, 24), picture((24, 24)).float()
    assert not torch.allclose(crf.refine(logits, image), other.refine(logits, image))
    other.load_state_dict(crf.state_dict())
    torch.testing.assert_close(crf.refine(logits, image), other.refine(logits, image))


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


U, FEATURES = torch.zeros(1, 3, 6, 6), [torch.zeros(1, 2, 6, 6)]


def crf():
    return PacCRF(3, pairwise_kernels=[{}])


WRONG = {
    "compat_type": (ValueError, lambda: crf().add_pairwise_kernel(compat_type="3d"), "compat_type must be one of .*got '3d'"),
    "even window": (ValueError, lambda: crf().add_pairwise_kernel(4), r"kernel_size must be odd.*got \(4, 4\)"),
    "blur": (ValueError, lambda: crf().add_pairwise_kernel(blur=0), "blur must be a positive integer, got 0"),
    "symmetric": (ValueError, lambda: crf().add_pairwise_kernel(symmetric_normalization=True), "needs compat_type .*got '4d'"),
    "channels": (ValueError, lambda: PacCRF(0), "channels must be a positive integer, got 0"),
    "num_steps": (ValueError, lambda: PacCRF(3, 0), "num_steps must be a positive integer, got 0"),
    "loose num_steps": (ValueError, lambda: PacCRFLoose(3, -1), "num_steps must be a positive integer, got -1"),
    "final_output": (ValueError, lambda: PacCRF(3, final_output="Q"), "final_output must be one of .*got 'Q'"),
    "loose final_output": (ValueError, lambda: PacCRFLoose(3, final_output="Q"), "final_output must be one of .*got 'Q'"),
    "unary channels": (ValueError, lambda: crf()(U[:, :2], FEATURES), "unary must have 3 channels, got 2"),
    "unary rank": (ValueError, lambda: crf()(U[0], FEATURES), r"unary must be \[batch.*got \[3, 6, 6\]"),
    "features type": (TypeError, lambda: crf()(U, 3), "features must be a tensor, or a list of one a kernel, got int"),
    "no feature": (TypeError, lambda: crf()(U, [None]), r"features\[0\] must be a tensor, got NoneType"),
    "logQ": (ValueError, lambda: crf()(U, FEATURES, logQ=U[:, :1]), r"logQ must be of the unary's shape .*got \[1, 1, 6, 6\]"),
    "logQ type": (TypeError, lambda: crf()(U, FEATURES, logQ=[U]), "logQ must be a tensor, got list"),
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
