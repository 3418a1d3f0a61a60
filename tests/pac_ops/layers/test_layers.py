"""The layers beside their `torch.nn` counterparts: sizes, results with a constant guide, state_dict, fillers."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import pac_ops
from pac_ops import PacConv2d, PacConvTranspose2d, PacPool2d, adapting

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("ignore:a 1x1 window")


def constant_guide(x, size):
    return torch.full((x.shape[0], 2, *size), 0.7)


CONV = [
    {},
    {"bias": False},
    {"stride": 2, "padding": 1},
    {"stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)},
    {"padding": "same", "dilation": (2, 3)},
    {"padding": "valid"},
    {"groups": 2, "padding": 1},
    {"groups": 4, "padding": 1},
    {"padding": 1, "padding_mode": "reflect"},
    {"padding": 2, "padding_mode": "replicate"},
    {"padding": "same", "padding_mode": "circular"},
    {"padding": (1, 2), "padding_mode": "reflect", "stride": 2},
]
TRANSPOSED = [
    {},
    {"bias": False, "stride": 3},
    {"stride": 2, "padding": 1, "output_padding": 1},
    {"stride": (1, 2), "padding": (0, 1), "dilation": (2, 1), "output_padding": (1, 0)},
    {"groups": 2, "stride": 2},
    {"groups": 4, "padding": 1, "dilation": 3},
]
POOL = [{}, {"stride": 2}, {"stride": (1, 2), "padding": 1}, {"stride": 2, "padding": 1, "ceil_mode": True}]
COUNTERPARTS = [
    *[(PacConv2d, nn.Conv2d, (4, 8), options) for options in CONV],
    *[(PacConvTranspose2d, nn.ConvTranspose2d, (4, 8), options) for options in TRANSPOSED],
]


@pytest.mark.parametrize(("ours", "theirs", "channels", "options"), COUNTERPARTS, ids=str)
@pytest.mark.parametrize("kernel_size", [1, 3, (3, 5)])
def test_with_a_constant_guide_a_convolution_is_its_counterpart(kernel_size, ours, theirs, channels, options):
    torch.manual_seed(1)
    plain = theirs(*channels, kernel_size, **options)
    torch.manual_seed(1)
    layer = ours(*channels, kernel_size, **options)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(v, plain.state_dict()[k]) for k, v in layer.state_dict().items())  # starts as it does
    x = torch.randn(2, 4, 11, 9)
    expected = plain(x)
    size = expected.shape[2:] if ours is PacConvTranspose2d else x.shape[2:]
    # Constant over the image is not constant over its zero border, but there the input is zero as well.
    torch.testing.assert_close(layer(x, constant_guide(x, size)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", POOL, ids=str)
@pytest.mark.parametrize("channel_wise", [False, True])
def test_with_a_constant_guide_pooling_is_its_counterpart(options, channel_wise):
    x = torch.randn(2, 4, 11, 9)
    guide = torch.full_like(x, 0.7)
    options = {"stride": None, **options}
    layer = PacPool2d(3, normalize_kernel=True, channel_wise=channel_wise, **options)
    torch.testing.assert_close(layer(x, guide), nn.AvgPool2d(3, count_include_pad=False, **options)(x))
    summing = PacPool2d(3, channel_wise=channel_wise, **options)
    torch.testing.assert_close(summing(x, guide), nn.AvgPool2d(3, divisor_override=1, **options)(x))


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from(["conv", "transpose", "pool"]),
    st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 2),
    pairs(1, 5),
    pairs(0, 3),
    pairs(1, 4),
    pairs(0, 4),
    pairs(1, 40),
    st.booleans(),
)
def test_output_sizes_are_the_counterparts(op, kernel_size, stride, padding, dilation, extra, size, ceil_mode):
    x = torch.empty(1, 2, *size)
    if op == "conv":
        plain = nn.Conv2d(2, 2, kernel_size, stride, padding, dilation)
        layer = PacConv2d(2, 2, kernel_size, stride, padding, dilation)
    elif op == "transpose":
        assume(all(e < s or e < d for e, s, d in zip(extra, stride, dilation, strict=True)))
        plain = nn.ConvTranspose2d(2, 2, kernel_size, stride, padding, extra, dilation=dilation)
        layer = PacConvTranspose2d(2, 2, kernel_size, stride, padding, extra, dilation=dilation)
    else:
        padding = tuple(min(p, k // 2) for p, k in zip(padding, kernel_size, strict=True))
        plain = nn.AvgPool2d(kernel_size, stride, padding, ceil_mode)
        layer = PacPool2d(kernel_size, stride, padding, ceil_mode=ceil_mode)
    try:
        expected = plain(x).shape
    except RuntimeError:  # the window does not fit the image: then ours does not run either
        with pytest.raises(ValueError, match="must"):
            layer(x, x)
        return
    guide = x.new_empty(1, 2, *expected[2:]) if op == "transpose" else x
    assert layer(x, guide).shape == expected


# The published names, shapes and starting values.
NUMBER, FILTER = torch.Size([]), torch.Size([1, 1, 3, 3])
STATE = [
    (lambda: PacConv2d(4, 6, 3), {"weight": (6, 4, 3, 3), "bias": (6,)}, set()),
    (lambda: PacConv2d(4, 6, 3, bias=False, groups=2), {"weight": (6, 2, 3, 3)}, set()),
    (lambda: PacConv2d(4, 4, (3, 5), shared_filters=True), {"weight": (1, 1, 3, 5), "bias": (4,)}, set()),
    (lambda: PacConvTranspose2d(4, 6, 5, 2), {"weight": (4, 6, 5, 5), "bias": (6,)}, set()),
    (lambda: PacConvTranspose2d(4, 6, 3, groups=2), {"weight": (4, 3, 3, 3), "bias": (6,)}, set()),
    (lambda: PacConvTranspose2d(4, 4, 3, shared_filters=True), {"weight": (1, 1, 3, 3), "bias": (4,)}, set()),
    (lambda: PacPool2d(3), {}, set()),
    (
        lambda: PacConv2d(4, 6, 3, bias=False, kernel_type="inv_0.1_0.5", smooth_kernel_type="full_3"),
        {"weight": (6, 4, 3, 3), "inv_alpha": NUMBER, "inv_lambda": NUMBER, "smooth_kernel": FILTER},
        set(),
    ),
    (
        lambda: PacPool2d(3, kernel_type="inv_0.1_0.5_asym_fixed", smooth_kernel_type="gaussian"),
        {"inv_alpha": NUMBER, "inv_lambda": NUMBER, "smooth_kernel": FILTER},
        {"inv_alpha", "inv_lambda", "smooth_kernel"},
    ),
    (
        lambda: PacPool2d(
            3, kernel_type="inv_0.1_0.5", smooth_kernel_type="average_5", channel_wise=True, channels=7
        ),
        {"inv_alpha": (7,), "inv_lambda": (7,), "smooth_kernel": (1, 1, 5, 5)},
        {"smooth_kernel"},
    ),
]


@pytest.mark.parametrize(("make", "shapes", "buffers"), STATE)
def test_state_dict(make, shapes, buffers):
    layer = make()
    assert {k: tuple(v.shape) for k, v in layer.state_dict().items()} == {k: tuple(v) for k, v in shapes.items()}
    assert {name for name, _ in layer.named_buffers()} == buffers
    state = layer.state_dict()
    if "inv_alpha" in shapes:
        assert torch.all(state["inv_alpha"] == 0.1)
        assert torch.all(state["inv_lambda"] == 0.5)
    if "smooth_kernel" in shapes:
        torch.testing.assert_close(state["smooth_kernel"].sum(), torch.tensor(1.0))
    assert {v.dtype for v in make().double().state_dict().values()} <= {torch.float64}


def test_the_binomial_is_1_2_1():
    smooth = adapting.smoothing_filter(adapting.smooth_type("gaussian"))[0, 0]
    assert torch.equal(smooth * 16, torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]))


def test_device_and_dtype_reach_every_tensor():
    options = {"kernel_type": "inv_0.1_0.5", "smooth_kernel_type": "full_3", "device": "meta", "dtype": torch.float16}
    layers = [PacConv2d(2, 2, 3, **options), PacConvTranspose2d(2, 2, 3, **options), PacPool2d(3, **options)]
    for layer in layers:
        for x in layer.state_dict().values():
            assert (x.device.type, x.dtype) == ("meta", torch.float16)


@pytest.mark.parametrize(("kernel_size", "stride"), [(5, 2), (7, 4), ((3, 5), (2, 3)), (3, 1)])
@pytest.mark.parametrize("options", [{}, {"groups": 3}, {"shared_filters": True}], ids=str)
def test_a_linear_filler_upsamples_bilinearly(kernel_size, stride, options):
    """Input pixel i lands on output pixel i * stride; between them, away from the border, it is linear."""
    window = nn.Conv2d(1, 1, kernel_size, stride)
    padding = [k // 2 for k in window.kernel_size]
    ends = [s - 1 for s in window.stride]
    layer = PacConvTranspose2d(3, 3, kernel_size, stride, padding, ends, filler="linear", **options)
    ramp = torch.arange(6.0)[:, None] * 2 + torch.arange(5.0) * 3  # bilinear interpolation is exact on a plane
    x = ramp.expand(1, 3, 6, 5) + torch.tensor([0.0, 100, 200])[:, None, None]
    out = layer(x, constant_guide(x, [6 * window.stride[0], 5 * window.stride[1]]))
    rows = torch.arange(6 * window.stride[0]) / window.stride[0]
    columns = torch.arange(5 * window.stride[1]) / window.stride[1]
    expected = rows[:, None] * 2 + columns * 3 + torch.tensor([0.0, 100, 200])[:, None, None]
    inside = (slice(None, 5 * window.stride[0] + 1), slice(None, 4 * window.stride[1] + 1))
    torch.testing.assert_close(out[0][:, *inside], expected[:, *inside])


NORMALISED = [(3, 2, 1, 0), (3, 2, 1, 1), (5, 2, 2, 1), (7, 2, 1, 0), (5, 3, 2, 2), (7, 4, 3, 0), (9, 4, 4, 3)]
NORMALISED += [((3, 5), (2, 3), (1, 2), (0, 1)), ((5, 3), (1, 2), (2, 1), (0, 1)), ((3, 1), (2, 1), 1, 0)]


@pytest.mark.parametrize(("kernel_size", "stride", "padding", "output_padding"), NORMALISED)
@pytest.mark.parametrize("options", [{}, {"groups": 3}, {"shared_filters": True, "bias": False}], ids=str)
def test_a_linear_filler_upsamples_bilinearly_with_normalised_kernels(
    kernel_size, stride, padding, output_padding, options
):
    """Where no tap is outside the image, which with a window of 2 * stride - 1 is everywhere between two pixels."""
    made = (kernel_size, stride, padding, output_padding)
    layer = PacConvTranspose2d(3, 3, *made, filler="linear", normalize_kernel=True, **options)
    sides = list(zip((8, 7), layer.kernel_size, layer.stride, layer.padding, layer.output_padding, strict=True))
    x = torch.randn(2, 3, 8, 7)
    out = layer(x, constant_guide(x, [(n - 1) * s - 2 * p + k + e for n, k, s, p, e in sides]))
    spans = [(n - 1) * s + 1 for n, _, s, _, _ in sides]
    expected = F.interpolate(x, size=spans, mode="bilinear", align_corners=True)
    for axis, (span, (_, k, s, p, _)) in enumerate(zip(spans, sides, strict=True), start=2):
        edge = k // 2 - (s - 1)  # pixels whose windows leave the image
        first, last = max(edge, p - k // 2), span - max(edge, p - k // 2)
        expected = expected.narrow(axis, first, last - first)
        out = out.narrow(axis, first + k // 2 - p, last - first)
    torch.testing.assert_close(out, expected)


def test_a_linear_filler_upsamples_the_smallest_map():
    x, guide = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, None], torch.zeros(1, 2, 3, 3)
    out = PacConvTranspose2d(1, 1, 3, 2, 1, filler="linear", normalize_kernel=True)(x, guide)
    torch.testing.assert_close(out[0, 0], torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.5, 2.0], [2.0, 2.5, 3.0]]))


def test_a_linear_filler_without_stride_is_the_identity():
    x = torch.randn(1, 3, 6, 6)
    layer = PacConv2d(3, 3, 3, padding=1, filler="linear")
    torch.testing.assert_close(layer(x, torch.randn(1, 2, 6, 6)), x)  # K is 1 at the centre


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_linear_filler_without_stride_is_the_identity_with_normalised_kernels(transposed, dilation):
    x, options = torch.randn(1, 3, 9, 9), {"filler": "linear", "normalize_kernel": True, "dilation": dilation}
    make = PacConvTranspose2d if transposed else PacConv2d
    out = make(3, 3, 3, padding=dilation, **options)(x, constant_guide(x, (9, 9)))
    inside = slice(dilation, -dilation)
    torch.testing.assert_close(out[:, :, inside, inside], x[:, :, inside, inside])


def test_fixed_numbers_stay_and_others_learn():
    x, guide = torch.randn(1, 2, 6, 6), torch.randn(1, 3, 6, 6)
    for kernel_type, learns in (("inv_0.1_0.5", True), ("inv_0.1_0.5_fixed", False)):
        layer = PacConv2d(2, 2, 3, kernel_type=kernel_type)
        layer(x, guide).sum().backward()
        assert isinstance(layer.inv_alpha, nn.Parameter) is learns
        assert (layer.inv_alpha.grad is not None) is learns


def test_nan_under_a_mask_stays_there():
    """Sparse data marks what is missing with NaN: nothing of it may reach the output, or a gradient."""
    mask = torch.rand(1, 1, 8, 8) > 0.5
    x = torch.randn(1, 2, 8, 8).masked_fill(~mask, float("nan"))
    for layer in (PacConv2d(2, 2, 3), PacConvTranspose2d(2, 2, 3, 2), PacPool2d(3, normalize_kernel=True)):
        size = (17, 17) if isinstance(layer, PacConvTranspose2d) else (8, 8)
        out, output_mask = layer(x, torch.randn(1, 3, *size), mask=mask)
        assert out.isfinite().all()
        assert output_mask.dtype == torch.bool
        out.sum().backward() if list(layer.parameters()) else None
        assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_a_mask_of_ones_changes_nothing():
    x, guide, ones = torch.randn(1, 2, 7, 7), torch.randn(1, 3, 7, 7), torch.ones(1, 1, 7, 7)
    for padding_mode in ("zeros", "reflect"):
        for normalize in (False, True):
            layer = PacConv2d(2, 2, 3, padding=1, padding_mode=padding_mode, normalize_kernel=normalize)
            out, output_mask = layer(x, guide, mask=ones)
            torch.testing.assert_close(out, layer(x, guide))
            assert torch.equal(output_mask, ones)


def test_a_mask_is_padded_as_the_image_is():
    layer = PacConv2d(2, 2, 3, padding=1, padding_mode="reflect")
    x, guide, mask = torch.randn(1, 2, 6, 6), torch.randn(1, 3, 6, 6), torch.rand(1, 1, 6, 6) > 0.5
    padded = [nn.functional.pad(t.float(), (1, 1, 1, 1), mode="reflect") for t in (x, guide, mask)]
    inner = PacConv2d(2, 2, 3)
    inner.load_state_dict(layer.state_dict())
    expected, expected_mask = inner(padded[0], padded[1], mask=padded[2])
    out, output_mask = layer(x, guide, mask=mask)
    torch.testing.assert_close(out, expected)
    assert torch.equal(output_mask, expected_mask.bool())


def test_a_kernel_made_beforehand_gives_the_same():
    x, guide, mask = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8), torch.rand(2, 1, 8, 8) > 0.3
    layer = PacConv2d(4, 2, 3, padding=1)
    kernel, none = pac_ops.packernel2d(guide, padding=1)
    assert none is None
    torch.testing.assert_close(layer(x, None, kernel), layer(x, guide))
    torch.testing.assert_close(layer(x, None, kernel, mask), layer(x, guide, mask=mask))


def test_numbers_given_to_packernel2d_take_the_place_of_the_names():
    guide = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    named, _ = pac_ops.packernel2d(guide, kernel_type="inv_0.3_0.8")
    given = {"inv_alpha": torch.tensor(0.3), "inv_lambda": torch.tensor([0.8])}
    other, _ = pac_ops.packernel2d(guide, kernel_type="inv_9_9", **given)
    torch.testing.assert_close(other, named, rtol=1e-6, atol=1e-6)


def test_one_by_one_windows_warn_once(monkeypatch):
    monkeypatch.setattr(adapting, "_warned_of_constant_kernel", False)
    x = torch.randn(1, 2, 4, 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer = PacConv2d(2, 2, 1)
        layer(x, x)
        PacPool2d(1)
        pac_ops.packernel2d(x, kernel_size=1)
    assert ["1x1 window" in str(w.message) for w in caught] == [True]
    assert caught[0].filename == __file__  # where the caller can find it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(adapting, "_warned_of_constant_kernel", False)
        PacConv2d(2, 2, 1, smooth_kernel_type="gaussian")(x, x)  # against a smoothed centre K is not constant


def test_they_print_what_differs():
    layer = PacConv2d(4, 4, 3, kernel_type="inv_0.1_0.5", shared_filters=True, normalize_kernel=True)
    assert "kernel_type=inv_0.1_0.5, normalize_kernel=True, shared_filters=True" in repr(layer)
    assert "smooth_kernel_type=full_3" in repr(PacConvTranspose2d(4, 4, 3, smooth_kernel_type="full_3"))
    assert "channel_wise=True" in repr(PacPool2d(3, channel_wise=True))


def test_two_lines_without_hotswap_torchvision_or_timm():
    code = (
        "import torch, pac_ops\n"
        "pac_ops.PacConv2d(3, 3, 3)(torch.ones(1, 3, 8, 8), torch.ones(1, 1, 8, 8))\n"
        "import sys; assert not {'hotswap', 'torchvision', 'timm', 'recipes'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
