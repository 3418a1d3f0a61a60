"""Guided enlargement: against F.interpolate, against its equation spelt out, and every backend against the oracle."""

import copy
import itertools
import math
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import TOLERANCE, assert_close, pairs
from torch.autograd import gradcheck, gradgradcheck

import pac_ops
from pac_ops import PacResize2d, pacresize2d, resize_distance2d, resize_kernel2d
from pac_ops.functional import steps

# Arguments of F.interpolate for an input of 7 x 5: even, odd and non-integer factors, a single pixel's row.
PLACES = [
    {"size": (14, 10)},
    {"size": (15, 11)},
    {"size": (29, 13)},
    {"size": (7, 5)},
    {"size": (7, 40)},
    {"scale_factor": 8},
    {"scale_factor": 2.5},
    {"scale_factor": 2.5, "recompute_scale_factor": True},
    {"scale_factor": (3.3, 1.9)},
    {"scale_factor": (1.1, 1.9)},  # the rows stay as many, and are copied
]
PLACES = [place | {"align_corners": align} for place in PLACES for align in (False, True)]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def make(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def spelt_out(v, f, place, scale, footprint, residual=False):
    """The equation, pixel by pixel, in Python numbers. v: [h, w], f: [G, H, W]."""
    g = F.adaptive_avg_pool2d(f, v.shape)
    out = torch.empty(f.shape[1:], dtype=torch.float64)
    factors = place.get("scale_factor")
    if place.get("recompute_scale_factor") or factors is None:
        factors = None
    elif isinstance(factors, (int, float)):
        factors = (factors, factors)

    def at(axis, pixel):
        n, m = v.shape[axis], out.shape[axis]
        if place["align_corners"]:
            return pixel * (n - 1) / (m - 1) if m > 1 else 0.0
        if n == m:
            return pixel
        ratio = n / m if factors is None else 1 / factors[axis]
        return min(max((pixel + 0.5) * ratio - 0.5, 0), n - 1)

    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            total = weights = smooth = flat = plain = 0.0
            for j in range(v.shape[0]):
                for i in range(v.shape[1]):
                    reach = footprint // 2
                    down, across = abs(at(0, y) - j), abs(at(1, x) - i)
                    w = max(0, 1 - down / reach) * max(0, 1 - across / reach)
                    d = (f[:, y, x] - g[:, j, i]).square().sum().item()
                    k = w * math.exp(-(scale**2) / 2 * d)
                    total, weights = total + k * v[j, i].item(), weights + k
                    smooth, flat = smooth + w * v[j, i].item(), flat + w
                    plain += max(0, 1 - down) * max(0, 1 - across) * v[j, i].item()
            out[y, x] = total / weights + (plain - smooth / flat if residual else 0.0)
    return out


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("footprint", [2, 4, 8])
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_equation_spelt_out(place, footprint, residual):
    v = make(1, 1, 3, 4)
    size = F.interpolate(v, mode="bilinear", **place).shape[2:] if "scale_factor" in place else (6, 9)
    place = place if "scale_factor" in place else place | {"size": (6, 9)}
    f = make(1, 2, *size, seed=1)
    expected = spelt_out(v[0, 0], f[0], place, 0.8, footprint, residual)
    out = pacresize2d(v, f, **place, scale=0.8, footprint=footprint, residual=residual)
    torch.testing.assert_close(out[0, 0], expected)


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), pairs(DTYPES))
def test_without_a_difference_in_the_guide_it_is_interpolate(backend, dtype, place):
    v = make(2, 3, 7, 5, dtype=dtype)
    expected = F.interpolate(v.double(), mode="bilinear", **place)
    f = make(2, 4, *expected.shape[2:], dtype=dtype)
    constant = make(2, 4, 1, 1, dtype=dtype).expand_as(f)
    with pac_ops.use_backend(backend):
        calls = ((f, 0.0, 2), (constant, 1.0, 2), (f, 0.0, 4), (constant, 1.0, 6), (f, 0.0, (6, 4, 2)))
        for guide, scale, footprint in calls:
            out = pacresize2d(v, guide, **place, scale=scale, footprint=footprint, residual=True)
            assert out.dtype == dtype
            if isinstance(footprint, int) or dtype in (torch.float64, torch.float32):
                assert_close(out, expected, dtype, f"scale {scale}, footprint {footprint}")
            else:  # what is between the steps is rounded too
                bound = 8 * torch.finfo(dtype).eps * v.double().abs().max()
                assert (out.double() - expected).abs().max() < bound


def random_call(chance):
    """The size of an input and arguments of F.interpolate, those at which an axis may stay as long among them."""

    def length():
        return chance.choice([1, 2, 3, chance.randint(1, 12), chance.randint(1, 40)])

    def factor(n):
        ways = (
            1.0,
            1 + chance.random() * min(2.5 / n, 1),  # the axis stays as long about as often as not
            chance.randint(n, 4 * n) / n,  # a ratio of sizes, which the product may miss by its rounding
            float(chance.randint(2, 9)),
            100.0 / n,
            1 + chance.random() * 3,
        )
        return max(1.0, chance.choices(ways, [2, 5, 2, 2, 0.5, 4])[0])

    coarse = (length(), length())
    place = {"align_corners": chance.random() < 0.4}
    if chance.random() < 0.3:
        size = tuple(n + chance.choice([0, 1, chance.randint(0, 3 * n)]) for n in coarse)
        return coarse, place | {"size": max(size) if chance.random() < 0.2 else size}
    factors = (factor(coarse[0]), factor(coarse[1]))
    place["scale_factor"] = factors[0] if chance.random() < 0.3 else factors
    return coarse, place | ({} if chance.random() < 0.5 else {"recompute_scale_factor": chance.random() < 0.6})


def check_random_calls(number, seed):
    """Hold random calls at scale 0 against F.interpolate; the worst error of each dtype."""
    chance = random.Random(seed)  # noqa: S311
    worst = {torch.float64: 0.0, torch.float32: 0.0}
    backends = [pair.values for pair in pairs([*worst]) if not pair.marks]
    for count in range(number):
        coarse, place = random_call(chance)
        backend, dtype = backends[count % len(backends)]
        v = make(chance.randint(1, 2), chance.randint(1, 3), *coarse, dtype=dtype, seed=count)
        if chance.random() < 0.3:
            v = v.contiguous(memory_format=torch.channels_last)
        expected = F.interpolate(v, mode="bilinear", **place)
        f = make(v.shape[0], 1, *expected.shape[2:], dtype=dtype, seed=count + 1)
        with pac_ops.use_backend(backend):
            out = pacresize2d(v, f, scale=0.0, **place)
        assert out.shape == expected.shape, (coarse, place)
        error = (out - expected).abs().max().item()
        # PyTorch reckons places in the map's dtype: off by an ulp or two of the size, where two pixels differ by up
        # to twice the largest.
        bound = 8 * torch.finfo(dtype).eps * max(coarse) * v.abs().max().item()
        assert error <= bound, (coarse, place, backend, dtype, error)
        worst[dtype] = max(worst[dtype], error)
    return worst


def test_random_calls_without_a_difference_in_the_guide_are_interpolate():
    check_random_calls(2_000, seed=20)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_random_calls():
    print(check_random_calls(20_000, seed=5))


def gradients(v, f, g, s, grad, place, footprint, residual):
    leaves = {"input": v, "guide": f, "coarse": g, "scale": s}
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
    out = pacresize2d(
        leaves["input"],
        leaves["guide"],
        **place,
        coarse_guide=leaves["coarse"],
        scale=leaves["scale"],
        footprint=footprint,
        residual=residual,
    )
    out.backward(grad)
    return {"output": out.detach()} | {f"d{name}": x.grad for name, x in leaves.items()}


def check(backend, dtype, place, footprint, batch, channels, guide_channels, coarse, residual=False):
    v = make(batch, channels, *coarse, dtype=dtype)
    size = F.interpolate(v.double(), mode="bilinear", **place).shape[2:]
    f, g = make(batch, guide_channels, *size, dtype=dtype, seed=1), make(batch, guide_channels, *coarse, dtype=dtype)
    s, grad = torch.tensor(0.7, dtype=dtype), make(batch, channels, *size, dtype=dtype, seed=2)
    with pac_ops.use_backend("reference"):
        expected = gradients(*(x.double() for x in (v, f, g, s, grad)), place, footprint, residual)
    with pac_ops.use_backend(backend):
        actual = gradients(v, f, g, s, grad, place, footprint, residual)
    for name, value in actual.items():
        assert value.dtype == dtype
        # The scale's gradient is one sum over all pixels, which may cancel.
        floor = max(1, 0.01 * grad.numel()) if name == "dscale" else 1e-30
        assert_close(value, expected[name], dtype, f"{backend} {name}", floor)


@pytest.mark.parametrize(("footprint", "residual"), [(2, False), (4, False), (6, True)])
@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize(("backend", "dtype"), pairs(TOLERANCE))
def test_output_and_every_gradient(backend, dtype, place, footprint, residual):
    check(backend, dtype, place, footprint, 2, 3, 4, (7, 5), residual)


@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float64]))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_options(backend, dtype, data):
    coarse = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 40)))
    factor = st.floats(1, 6)
    place = data.draw(
        st.one_of(
            st.builds(lambda a, b: {"size": (coarse[0] + a, coarse[1] + b)}, st.integers(0, 20), st.integers(0, 50)),
            st.builds(lambda a, b: {"scale_factor": (a, b)}, factor, factor),
        )
    )
    place |= {"align_corners": data.draw(st.booleans())}
    sizes = [data.draw(st.integers(0 if n == 2 else 1, 3)) for n in range(3)]
    check(backend, dtype, place, data.draw(st.sampled_from([2, 4, 6, 8])), *sizes, coarse, data.draw(st.booleans()))


@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float64]))
def test_memory_that_was_never_written_is_never_read(backend, dtype):
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        for place in PLACES[::3]:
            check(backend, dtype, place, 2, 2, 3, 4, (7, 5))
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float64]))
def test_any_memory_layout(backend, dtype):
    v, f = make(2, 3, 6, 5, dtype=dtype), make(2, 3, 13, 11, dtype=dtype)
    expected = pacresize2d(v.double(), f.double())
    layouts = (
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: torch.stack([x, x + 1], -1).flatten(-2)[..., ::2],
        lambda x: x.mT.contiguous().mT,
    )
    with pac_ops.use_backend(backend):
        for layout in layouts:
            assert_close(pacresize2d(layout(v), layout(f)), expected, dtype, "layout")


def test_gradients_of_two_orders_of_input_guides_and_scale():
    v, f, g = (
        make(*shape, seed=n).requires_grad_() for n, shape in enumerate([(1, 2, 2, 3), (1, 2, 4, 5), (1, 2, 2, 3)])
    )
    s = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def run(v, f, g, s):
        return pacresize2d(v, f, coarse_guide=g, scale=s)

    assert gradcheck(run, (v, f, g, s))
    assert gradgradcheck(run, (v, f, g, s))
    assert gradcheck(lambda v, f: pacresize2d(v, f, footprint=4), (v, f))
    assert gradgradcheck(lambda v, f: pacresize2d(v, f, align_corners=True), (v, f))
    assert gradcheck(run, (v, f, g, s), check_forward_ad=True, check_backward_ad=False)


def test_a_far_guide_makes_neither_nan_nor_zero():
    """Every K underflows; the nearest in the guide wins."""
    v = torch.tensor([[[[1.0, 2.0]]]])
    f = torch.tensor([[[[0.0, 1e3, 3e3, 1e4]]]]).requires_grad_()
    g = torch.tensor([[[[-1e4, 5e3]]]])
    out = pacresize2d(v, f, coarse_guide=g, scale=10.0)
    torch.testing.assert_close(out.detach(), torch.tensor([[[[1.0, 2.0, 2.0, 2.0]]]]))
    out.sum().backward()
    assert f.grad.isfinite().all()


def test_weights_sum_to_one_and_leave_out_what_has_none():
    f = make(1, 2, 9, 9)
    distance = resize_distance2d(f, F.adaptive_avg_pool2d(f, 3), align_corners=True)
    weight = resize_kernel2d(distance, 3, align_corners=True, scale=0.3)
    torch.testing.assert_close(weight.sum(dim=(2, 3)), torch.ones(1, 1, 9, 9, dtype=torch.float64))
    # Fine pixel 4 lies on coarse pixel 1, fine pixel 0 and 8 on those at the ends.
    assert torch.equal(weight[0, 0, :, :, 4, 4], torch.tensor([[1.0, 0], [0, 0]], dtype=torch.float64))
    assert not weight[0, 0, 1, :, [0, 8]].any()


def test_wide_footprint_reaches_a_pixel_further():
    """A stripe one fine pixel wide: its own colour is in the coarse guide only further away."""
    v = torch.tensor([[[[0.0, 0.0, 0.0, 1.0]]]])
    g = torch.tensor([[[[0.0, 0.0, 0.0, 1.0]]]])
    f = torch.zeros(1, 1, 1, 16)
    f[..., 8] = 1
    narrow, wide = (pacresize2d(v, f, coarse_guide=g, scale=10.0, footprint=n)[0, 0, 0, 8].item() for n in (2, 4))
    assert narrow == pytest.approx(0)
    assert wide == pytest.approx(1)


# --- steps ----------------------------------------------------------------------------------------------------


def means_between(f, coarse, times, align):
    """The guide at a map's pixels and those put between, by its definition: a box, then 1 2 1, in Python numbers."""
    for axis in (2, 3):
        n, size = coarse[axis - 2], f.shape[axis]
        m = (n - 1) * 2**times + 1
        width = (size - 1) / (n - 1) / 2**times if align else size / n / 2**times
        assert width == 2  # so that what is expected is plain: two pixels, or three weighed 1 2 1
        rows = []
        for i in range(m):
            centre = i * 2 if align else 2 * i + 2**times - 0.5
            taps = (
                {centre - 1: 0.25, centre: 0.5, centre + 1: 0.25} if align else {centre - 0.5: 0.5, centre + 0.5: 0.5}
            )
            rows.append(sum(w * f.select(axis, int(min(max(at, 0), size - 1))) for at, w in taps.items()))
        f = torch.stack(rows, axis)
    return f


def every_second(x):
    for axis in (2, 3):
        n = x.shape[axis]
        rows = [
            0.25 * x.select(axis, max(i - 1, 0)) + 0.5 * x.select(axis, i) + 0.25 * x.select(axis, min(i + 1, n - 1))
            for i in range(0, n, 2)
        ]
        x = torch.stack(rows, axis)
    return x


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("align", [False, True])
def test_steps_put_pixels_between_one_after_the_other(align, residual):
    coarse = (5, 4)
    fine = (33, 25) if align else (40, 32)
    v, f = make(2, 3, *coarse), make(2, 2, *fine, seed=1)
    out = pacresize2d(v, f, align_corners=align, scale=0.8, footprint=(6, 4, 2), residual=residual)
    finest = means_between(f, coarse, 2, align)
    first = every_second(finest)
    near = every_second(first)
    options = {"align_corners": True, "scale": 0.8, "residual": residual}
    expected = pacresize2d(v, first, coarse_guide=near, footprint=6, **options)
    expected = pacresize2d(expected, finest, coarse_guide=first, footprint=4, **options)
    # The last step, pixel by pixel: its neighbours are those around its place among the pixels put between.
    last = torch.empty_like(out)
    for y, x in itertools.product(*map(range, fine)):
        weights, values = [], []
        places = []
        for at, n, m in ((y, coarse[0], fine[0]), (x, coarse[1], fine[1])):
            places.append(4 * min(max(at * (n - 1) / (m - 1) if align else (at + 0.5) * n / m - 0.5, 0), n - 1))
        for j, i in itertools.product(range(expected.shape[2]), range(expected.shape[3])):
            w = max(0, 1 - abs(places[0] - j)) * max(0, 1 - abs(places[1] - i))
            if w > 0:
                d = (f[:, :, y, x] - finest[:, :, j, i]).square().sum(1)
                weights.append(w * torch.exp(-(0.8**2) / 2 * d))
                values.append(expected[:, :, j, i])
        total = torch.stack(weights)
        last[:, :, y, x] = (torch.stack(values) * total[:, :, None]).sum(0) / total.sum(0)[:, None]
    torch.testing.assert_close(out, last)


def longer(x):
    """With an odd height and width, the last pixel twice where they were even."""
    for axis in (2, 3):
        if x.shape[axis] % 2 == 0:
            x = torch.cat([x, x.select(axis, -1).unsqueeze(axis)], axis)
    return x


def doubled(x):
    return F.interpolate(x, [2 * n - 1 for n in x.shape[2:]], mode="bilinear", align_corners=True)


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("coarse", [(9, 5), (8, 6), (7, 10), (2, 1)], ids=str)
def test_halvings_are_a_laplacian_pyramid(coarse, align):
    v, f = make(2, 3, *coarse), make(2, 2, *(2 * n for n in coarse), seed=1)
    g = F.interpolate(f, coarse, mode="area")
    half, near = every_second(longer(v)), every_second(longer(g))
    quarter, nearest = every_second(longer(half)), every_second(longer(near))

    def back(x, guide, coarse_guide, footprint, before, plain):
        options = {"align_corners": True, "scale": 0.8, "residual": True}
        step = pacresize2d(x, longer(guide), coarse_guide=coarse_guide, footprint=footprint, **options)
        return before + (step - doubled(plain))[:, :, : before.shape[2], : before.shape[3]]

    first = back(quarter, near, nearest, 6, half, quarter)
    second = back(first, g, near, 4, v, half)
    options = {"align_corners": align, "scale": 0.8, "residual": True}
    expected = pacresize2d(second, f, coarse_guide=g, footprint=2, **options)
    for x in (v, v.clone().requires_grad_()):  # rows at a time, and the whole
        out = pacresize2d(x, f, footprint=(6, 4, 2), halvings=2, **options)
        torch.testing.assert_close(out, expected)
    if coarse != (2, 1):
        assert (expected - pacresize2d(v, f, footprint=2, **options)).abs().max() > 1e-3


@pytest.mark.parametrize("coarse", [(9, 5), (8, 6), (1, 1), (1, 4)], ids=str)
@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float32, torch.float64, torch.bfloat16]))
def test_halvings_leave_interpolate_where_the_guide_is_flat(backend, dtype, coarse):
    v, f = make(2, 3, *coarse, dtype=dtype), make(2, 2, *(3 * n for n in coarse), dtype=dtype, seed=1)
    expected = F.interpolate(v.double(), f.shape[2:], mode="bilinear")
    options = {"footprint": (6, 4, 4, 2), "halvings": 2, "residual": True}
    with pac_ops.use_backend(backend):
        for guide, scale in ((f, 0.0), (f[:, :, :1, :1].expand_as(f), 1.0)):
            out = pacresize2d(v, guide, scale=scale, **options)
            assert out.dtype == dtype
            bound = 8 * torch.finfo(dtype).eps * v.double().abs().max()
            assert (out.double() - expected).abs().max() < bound


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("place", [{}, {"align_corners": True}, {"scale_factor": (6.3, 5)}], ids=str)
@pytest.mark.parametrize(("backend", "dtype"), pairs([torch.float64, torch.float32, torch.bfloat16]))
def test_what_is_not_recorded_and_rows_of_it_are_what_is_recorded(backend, dtype, place, residual, monkeypatch):
    v = make(2, 3, 9, 5, dtype=dtype)
    size = F.interpolate(v, mode="bilinear", **place).shape[2:] if "scale_factor" in place else (65, 33)
    f = make(2, 2, *size, dtype=dtype, seed=1)
    monkeypatch.setattr(steps, "ROWS_OF_A_BAND", 5)
    for footprint, halvings in ((2, 0), (8, 0), ((2, 2), 0), ([6, 4, 2], 0), ((4, 2, 2), 1), ((6, 4, 2), 2)):
        options = place | {"scale": 0.8, "footprint": footprint, "residual": residual, "bounded": residual}
        options["halvings"] = halvings
        recorded = pacresize2d(v.double().requires_grad_(), f.double(), **options).detach()
        with pac_ops.use_backend(backend):
            for taps in (steps.TAPS_OF_A_BAND, 1):
                with monkeypatch.context() as patched:
                    patched.setattr(steps, "TAPS_OF_A_BAND", taps)
                    assert_close(pacresize2d(v, f, **options), recorded, dtype, f"{footprint} {taps}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_scores_of_another_dtype_than_the_guide(dtype):
    v, f = make(1, 3, 9, 5, dtype=dtype), make(1, 3, 72, 40, dtype=torch.float32, seed=1)
    options = {"footprint": (6, 4, 2), "residual": True}
    expected = pacresize2d(v.double(), f.double(), **options)
    assert_close(pacresize2d(v, f, **options), expected, torch.float32 if dtype == torch.float64 else dtype, "output")


def test_what_is_remembered_of_sizes_serves_every_mode():
    v, f = make(1, 2, 13, 17, dtype=torch.float32), make(1, 2, 31, 39, dtype=torch.float32, seed=1)
    options = {"scale": 0.8, "footprint": (4, 2), "residual": True}
    with torch.inference_mode():  # whose tensors autograd does not take
        first = pacresize2d(v, f, **options)
    v.requires_grad_()
    again = pacresize2d(v, f, **options)
    torch.testing.assert_close(again, first.clone())
    again.sum().backward()
    torch.testing.assert_close(v.grad.sum(), again.new_tensor(float(again.numel())))
    factors = pacresize2d(v.detach(), f[:, :, :26, :34], scale_factor=(2, 2), **options)
    other = pacresize2d(v.detach(), f[:, :, :26, :34], scale_factor=(2.05, 2.0), **options)
    assert not torch.equal(factors, other)  # of the same sizes, with pixels elsewhere


@pytest.mark.parametrize("halvings", [0, 1])
def test_gradients_through_steps(halvings):
    v, f = make(1, 2, 2, 3).requires_grad_(), make(1, 2, 8, 11, seed=1).requires_grad_()
    s = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)

    def run(v, f, s):
        return pacresize2d(v, f, scale=s, footprint=(4, 2), halvings=halvings, residual=True)

    assert gradcheck(run, (v, f, s))


@pytest.mark.parametrize("place", [{}, {"align_corners": True}, {"scale_factor": 4}], ids=str)
def test_bounded_no_pixel_leaves_the_range_of_its_neighbours(place):
    v, f = make(1, 1, 5, 6), make(1, 2, 20, 24, seed=1)
    options = place | {"scale": 2.0, "footprint": (4, 2), "residual": True}
    free, bounded = pacresize2d(v, f, **options), pacresize2d(v, f, bounded=True, **options)
    # Of every coarse pixel as an image of its own, what mode="bilinear" reads of it.
    each = torch.eye(30, dtype=torch.float64).view(1, 30, 5, 6)
    read = (
        F.interpolate(each, f.shape[2:] if "scale_factor" not in place else None, mode="bilinear", **place)[0] > 1e-12
    )
    values = v.flatten()[:, None, None].expand_as(read)
    least, most = values.where(read, values.max()).amin(0), values.where(read, values.min()).amax(0)
    inside = (free[0, 0] >= least) & (free[0, 0] <= most)
    assert not inside.all()
    assert torch.equal(bounded[0, 0][inside], free[0, 0][inside])
    # A neighbour of weight 0 may count: at the border one is repeated, on a coarse pixel there is one too many.
    seen = (bounded[0, 0] >= v.min()) & (bounded[0, 0] <= v.max())
    assert seen.all()
    exact = read.sum(0) == 4
    torch.testing.assert_close(bounded[0, 0][exact], free[0, 0].clamp(least, most)[exact])
    flat = pacresize2d(v, f, bounded=True, **options | {"scale": 0.0})
    expected = F.interpolate(v, None if "scale_factor" in place else f.shape[2:], mode="bilinear", **place)
    torch.testing.assert_close(flat, expected)


# --- PyTorch's paths ----------------------------------------------------------------------------------------


def example():
    torch.manual_seed(0)
    return PacResize2d(scale_factor=2, learn_scale=True), torch.randn(2, 3, 5, 4), torch.randn(2, 2, 10, 8)


def test_compile_in_one_graph_with_gradients_and_dynamic_shapes():
    layer, _, _ = example()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ((2, 5, 4), (3, 7, 9)):
        v = torch.randn(size[0], 3, *size[1:])
        a, b = (torch.randn(size[0], 2, 2 * size[1], 2 * size[2], requires_grad=True) for _ in range(2))
        b.data.copy_(a.data)
        out, expected = compiled(v, a), layer(v, b)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad)


def test_export_with_dynamic_batch():
    layer, v, f = example()
    auto = torch.export.Dim.AUTO
    program = torch.export.export(layer, (v, f), dynamic_shapes=({0: auto}, {0: auto}))
    v, f = torch.randn(5, 3, 5, 4), torch.randn(5, 2, 10, 8)
    torch.testing.assert_close(program.module()(v, f), layer(v, f))


def test_vmap():
    v, f = make(3, 2, 2, 4, 3), make(3, 2, 1, 9, 7)
    expected = torch.stack([pacresize2d(a, b) for a, b in zip(v, f, strict=True)])
    torch.testing.assert_close(torch.vmap(pacresize2d)(v, f), expected)
    jacobian = torch.func.jacrev(lambda f: pacresize2d(v[0], f).sum(dim=(1, 2, 3)))(f[0])
    assert jacobian.shape == (2, *f[0].shape)


def test_autocast_and_copies():
    layer, v, f = example()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(v, f).dtype == torch.float32  # as F.interpolate, which is not narrowed
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(v, f), layer(v, f))
    assert set(layer.state_dict()) == {"log_scale"}
    assert str(layer) == "PacResize2d(scale_factor=2, footprint=2, learn_scale=True)"
    layer(v, f).sum().backward()
    assert layer.log_scale.grad is not None
    torch.testing.assert_close(PacResize2d(scale=1.0)(v, f), layer(v, f))


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": (10, 8), "scale_factor": 2}, ValueError, "give size or scale_factor, not both"),
        ({"size": (10, 9)}, ValueError, r"guide must be .* \[2, G, 10, 9\], got \[2, 2, 10, 8\]"),
        ({"scale_factor": 0.5}, ValueError, "scale_factor must be at least 1, got 0.5"),
        ({"scale_factor": "2"}, TypeError, "scale_factor must be a number or a pair of numbers, got '2'"),
        ({"recompute_scale_factor": True}, ValueError, "recompute_scale_factor must be False without"),
        ({"footprint": 3}, ValueError, "footprint must be one of 2, 4, 6, 8, or one of these for each step, got 3"),
        ({"footprint": ()}, ValueError, r"footprint must be one of .* for each step, got \(\)"),
        ({"footprint": (4, 3)}, ValueError, r"footprint must be one of .* for each step, got \(4, 3\)"),
        ({"halvings": 1}, ValueError, "halvings must be a number from 0 to 0, fewer than the footprints, got 1"),
        ({"footprint": (4, 2), "halvings": -1}, ValueError, "halvings must be a number from 0 to 1, .* got -1"),
        ({"footprint": (4, 2), "halvings": True}, ValueError, "halvings must be a number from 0 to 1, .* got True"),
        ({"scale": torch.ones(2)}, ValueError, r"scale must be a number or a tensor of one element, got \[2\]"),
        (
            {"coarse_guide": torch.zeros(2, 2, 5, 5)},
            ValueError,
            r"coarse_guide must have the input's height and width",
        ),
        (
            {"coarse_guide": torch.zeros(2, 1, 5, 4)},
            ValueError,
            r"coarse_guide must have the guide's batch and channels",
        ),
        ({"coarse_guide": torch.zeros(2, 2, 5, 4).half()}, TypeError, "coarse_guide must have the guide's dtype"),
        ({"coarse_guide": 3}, TypeError, "coarse_guide must be a tensor, got int"),
    ],
    ids=str,
)
def test_refusals(options, error, message):
    _, v, f = example()
    with pytest.raises(error, match=message):
        pacresize2d(v, f, **options)


def test_refuses_to_make_smaller():
    _, v, f = example()
    with pytest.raises(ValueError, match=r"no smaller than the input, .* got 10 x 8 to 5 x 4; F.interpolate"):
        pacresize2d(f, v)
    with pytest.raises(ValueError, match="scale must be > 0 where learn_scale=True"):
        PacResize2d(scale=0.0, learn_scale=True)
    with pytest.raises(ValueError, match=r"distance must be \[B, 1, n, n, H, W\]"):
        resize_kernel2d(torch.zeros(1, 1, 3, 3, 4, 4), 2)
