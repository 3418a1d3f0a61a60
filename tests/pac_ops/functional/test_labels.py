"""Labels of a guided enlargement without its scores: against the argmax of the scores, and what is held meanwhile."""

import math
import random

import pytest
import torch
from memory_use import largest_tensor
from oracle import pairs

import pac_ops
from pac_ops import pacresize2d, pacresize2d_labels
from pac_ops.functional import steps

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def labelled(scores):
    return (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)


def call(draw, dtype):
    """Input, guide and options of an enlargement, and how many weights a band has: bands that do not divide it."""
    h, w, batch = draw.randint(1, 9), draw.randint(1, 9), draw.choice((1, 2))
    scores = torch.randn(batch, draw.choice((1, 2, 5)), h, w)
    if draw.random() < 0.4:
        scores = scores.round()  # classes that tie
    factor = draw.uniform(1, 6)
    by_factor = draw.random() < 0.5
    size = (int(h * factor), int(w * factor)) if by_factor else (draw.randint(h, 6 * h), draw.randint(w, 6 * w))
    options = {"scale_factor": factor} if by_factor else {"size": size}
    options |= {"footprint": draw.choice((2, 4, 6, (4, 2), (6, 4, 2))), "residual": draw.random() < 0.5}
    if not isinstance(options["footprint"], int):
        options["halvings"] = draw.randrange(len(options["footprint"]))
    options |= {"align_corners": draw.random() < 0.3}
    options |= {"scale": draw.choice((0.0, 2.0, torch.tensor(9.0)))}
    last = options["footprint"] if isinstance(options["footprint"], int) else 2
    band = draw.choice((1, 3, 7)) * batch * size[1] * last**2
    return (scores.to(dtype), torch.rand(batch, 3, *size).to(dtype)), options, band


@pytest.mark.parametrize(("backend", "dtype"), pairs(DTYPES))
def test_labels_are_the_argmax_of_the_scores_and_bands_are_the_whole(backend, dtype, monkeypatch):
    draw = random.Random(0)  # noqa: S311 (no secret)
    bound = 1e-12 if dtype == torch.float64 else 2 * torch.finfo(dtype).eps
    for _ in range(2 if backend == "triton" else 12):
        tensors, options, band = call(draw, dtype)
        with pac_ops.use_backend(backend):
            whole = pacresize2d(*tensors, **options)
            assert torch.equal(pacresize2d_labels(*tensors, **options), labelled(whole))
            with monkeypatch.context() as patched:
                patched.setattr(steps, "TAPS_OF_A_BAND", band)
                in_bands = pacresize2d(*tensors, **options)
                assert torch.equal(pacresize2d_labels(*tensors, **options), labelled(in_bands))
        # torch's softmax takes another exponential for the last pixels of a tensor than for the others
        torch.testing.assert_close(in_bands, whole, rtol=4 * bound, atol=4 * bound)


def test_neither_scores_nor_weights_of_the_whole_are_held(monkeypatch):
    monkeypatch.setattr(steps, "TAPS_OF_A_BAND", 2**12)
    scores, image = torch.randn(1, 40, 8, 8), torch.rand(1, 3, 128, 128)
    plane, pixels = image[0, 0].nbytes, 2**12 // 4
    held = largest_tensor(lambda: pacresize2d_labels(scores, image))
    assert held <= max(40 * pixels * 4, 3 * plane)  # a band of scores, or the image; the labels are smaller
    assert largest_tensor(lambda: pacresize2d(scores[:, :1], image, footprint=4)) <= 3 * plane  # 16 of weights


def test_traced_it_is_whole_and_the_same(monkeypatch):
    """A trace of bands would be right for the traced size alone."""
    monkeypatch.setattr(steps, "TAPS_OF_A_BAND", 100)
    scores, image = torch.randn(1, 3, 6, 5), torch.rand(1, 3, 24, 20)
    expected = labelled(pacresize2d(scores, image))
    torch._dynamo.reset()
    traced = torch.compile(pacresize2d_labels, fullgraph=True, backend="eager", dynamic=True)
    assert torch.equal(traced(scores, image), expected)
    fake = torch.empty(1, 3, 24, 20, device="meta")
    assert pacresize2d_labels(torch.empty(1, 3, 6, 5, device="meta"), fake).shape == (1, 24, 20)


@pytest.mark.parametrize("name", ["input", "guide", "coarse_guide", "scale"])
def test_refuses_a_gradient(name):
    tensors = {"input": torch.randn(1, 2, 3, 3), "guide": torch.rand(1, 3, 6, 6), "scale": torch.tensor(2.0)}
    tensors |= {"coarse_guide": torch.rand(1, 3, 3, 3)}
    tensors[name].requires_grad_()
    with pytest.raises(ValueError, match=f"^{name} must not require a gradient, which labels do not have: call"):
        pacresize2d_labels(**tensors)
    with torch.no_grad():
        assert pacresize2d_labels(**tensors).dtype == torch.int64


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("footprint", [2, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_impossible_class_is_never_chosen(footprint, channels, residual, monkeypatch):
    """Also where a neighbour's weight underflows, which makes nan of -inf in the scores."""
    scores, image = torch.randn(1, channels, 5, 6), torch.rand(1, 3, 17, 23)
    scores[:, -1, 1:3, 2:] = -math.inf
    options = {"scale": 60.0, "footprint": footprint}
    assert pacresize2d(scores, image, **options).isnan().any()
    lost = pacresize2d((scores == -math.inf).float(), image, **options) > 0
    options |= {"residual": residual}
    # The oracle: scores that are finite, in doubles, and whether what is impossible has a weight.
    possible = pacresize2d(scores.double().masked_fill(scores == -math.inf, 0), image, **options)
    expected = labelled(possible.masked_fill(lost, -math.inf))
    assert torch.equal(pacresize2d_labels(scores, image, **options), expected)
    monkeypatch.setattr(steps, "TAPS_OF_A_BAND", 3 * 23 * footprint**2)
    assert torch.equal(pacresize2d_labels(scores, image, **options), expected)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_scores_that_no_label_is_of(value):
    scores = torch.zeros(1, 2, 2, 2)
    scores[0, 0, 1, 1] = value
    with pytest.raises(
        ValueError, match=r"^input must be finite, or -inf where a class is impossible, got nan or \+inf"
    ):
        pacresize2d_labels(scores, torch.rand(1, 3, 8, 8))


def test_refuses_no_channels():
    with pytest.raises(ValueError, match=r"^input must have a channel to choose, got \[1, 0, 3, 3\]$"):
        pacresize2d_labels(torch.zeros(1, 0, 3, 3), torch.zeros(1, 3, 6, 6))
