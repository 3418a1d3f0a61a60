"""The filters that PAC generalises, beside kornia, torch.nn and the equations spelt out."""

import math

import kornia
import pytest
import skimage.data
import torch
import torch.nn.functional as F
from memory_use import largest_tensor
from torch import nn

import pac_ops
from pac_ops import (
    bilateral_filter,
    detail_preserving_pool2d,
    dynamic_filter2d,
    joint_bilateral_filter,
    joint_bilateral_upsample,
)
from pac_ops.functional import filters

D = torch.float64


def images(*channels, size=(11, 9), batch=2, dtype=D):
    return [torch.rand(batch, c, *size, dtype=dtype) for c in channels]


@pytest.mark.parametrize("border_type", ["reflect", "replicate", "circular", "constant"])
@pytest.mark.parametrize("kernel_size", [3, (5, 3), 7])
@pytest.mark.parametrize("sigma_color", [0.1, torch.tensor([0.2, 0.4], dtype=D)], ids=["one", "one an image"])
@pytest.mark.parametrize("sigma_space", [1.2, (1.5, 0.8)], ids=str)
def test_bilateral_filters_are_kornias(border_type, kernel_size, sigma_color, sigma_space):
    v, f = images(2, 3)
    sigmas = sigma_space if isinstance(sigma_space, tuple) else (sigma_space, sigma_space)  # kornia takes pairs only
    theirs = kornia.filters.joint_bilateral_blur(v, f, kernel_size, sigma_color, sigmas, border_type, "l2")
    ours = joint_bilateral_filter(v, f, kernel_size, sigma_color, sigma_space, border_type)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    theirs = kornia.filters.bilateral_blur(v, kernel_size, sigma_color, sigmas, border_type, "l2")
    torch.testing.assert_close(
        bilateral_filter(v, kernel_size, sigma_color, sigma_space, border_type), theirs, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"ceil_mode": True},
        {"stride": (2, 1), "padding": (1, 0), "ceil_mode": True},
    ],
    ids=str,
)
def test_pooling_with_a_constant_guide_is_average_pooling(options):
    (v,) = images(3, size=(12, 10))
    guide = torch.ones(2, 1, 12, 10, dtype=D)
    window = {"kernel_size": 3, "stride": 3} | options
    kernel, _ = pac_ops.packernel2d(guide, **window, normalize_kernel=True)
    ours = pac_ops.pacpool2d(v, kernel, **window)
    torch.testing.assert_close(ours, nn.AvgPool2d(**window, count_include_pad=False)(v))
    # The guide is 0 outside the image, where ceil_mode may put a window's centre: only 0 is constant there too.
    kernel, _ = pac_ops.packernel2d(0 * guide, **window)
    ours = pac_ops.pacpool2d(v, kernel, **window)
    torch.testing.assert_close(ours, nn.AvgPool2d(**window, divisor_override=1)(v))


def spelt_out_upsample(v, f, sigma_color, sigma_space, k):
    """Kopf et al., pixel by pixel."""
    (h, w), (big_h, big_w) = v.shape[2:], f.shape[2:]
    g = F.adaptive_avg_pool2d(f, (h, w))
    out = torch.zeros(*v.shape[:2], big_h, big_w, dtype=D)
    for y in range(big_h):
        for x in range(big_w):
            cy, cx = (y + 0.5) * h / big_h - 0.5, (x + 0.5) * w / big_w - 0.5
            total, weights = 0, 0
            for i in range(math.floor(cy + 0.5) - k // 2, math.floor(cy + 0.5) + k // 2 + 1):
                for j in range(math.floor(cx + 0.5) - k // 2, math.floor(cx + 0.5) + k // 2 + 1):
                    if not (0 <= i < h and 0 <= j < w):
                        continue
                    space = math.exp(-((i - cy) ** 2 + (j - cx) ** 2) / (2 * sigma_space**2))
                    colour = torch.exp(
                        -(f[:, :, y, x] - g[:, :, i, j]).square().sum(1, keepdim=True) / (2 * sigma_color**2)
                    )
                    total = total + space * colour * v[:, :, i, j]
                    weights = weights + space * colour
            out[:, :, y, x] = total / weights
    return out


@pytest.mark.parametrize("fine", [(8, 6), (9, 14), (11, 10), (4, 3)], ids=str)
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_joint_bilateral_upsample_is_the_equation(fine, kernel_size):
    v, f = images(2, size=(4, 3))[0], images(3, size=fine)[0]
    ours = joint_bilateral_upsample(v, f, 0.3, 0.9, kernel_size)
    torch.testing.assert_close(ours, spelt_out_upsample(v, f, 0.3, 0.9, kernel_size))


def test_joint_bilateral_upsample_is_as_wide_as_its_input():
    v, f = images(2, size=(4, 3))[0], images(3, size=(9, 7), dtype=torch.float32)[0]
    out = joint_bilateral_upsample(v, f, 0.3)
    torch.testing.assert_close(out, joint_bilateral_upsample(v, f.double(), 0.3), rtol=0, atol=0)


def test_joint_bilateral_upsample_survives_a_guide_unlike_all_its_neighbours():
    v, f = images(1, size=(4, 4))[0], 1e4 * images(3, size=(8, 8))[0]
    out = joint_bilateral_upsample(v, f, 1e-3)
    assert out.isfinite().all()
    assert out.min() >= v.min()
    assert out.max() <= v.max()


@pytest.mark.parametrize("dtype", [D, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("coarse", "fine"), [((5, 7), (37, 29)), ((1, 3), (11, 3)), ((6, 5), (6, 17))], ids=str)
def test_joint_bilateral_upsampling_in_bands_is_the_whole(coarse, fine, dtype, monkeypatch):
    v, f = images(2, size=coarse, dtype=dtype)[0], images(3, size=fine, dtype=dtype)[0]
    whole = joint_bilateral_upsample(v, f, 0.3, kernel_size=(5, 3))
    for high in (1, 3, 8):  # none of them divides 37, 11 and 6 rows all
        monkeypatch.setattr(filters, "PIXELS_OF_A_BAND", high * fine[1] * len(v))
        in_bands = joint_bilateral_upsample(v, f, 0.3, kernel_size=(5, 3))
        bound = 4 * torch.finfo(dtype).eps  # torch may round a product before it is added, or not, by its place
        torch.testing.assert_close(in_bands, whole, rtol=bound, atol=bound)


@pytest.mark.parametrize("shape", [(0, 2, 4, 5), (1, 0, 4, 5)], ids=str)
def test_joint_bilateral_upsampling_of_nothing(shape):
    out = joint_bilateral_upsample(torch.rand(shape), torch.rand(shape[0], 3, 9, 11), 0.3)
    assert out.shape == (*shape[:2], 9, 11)


def test_joint_bilateral_upsampling_holds_no_taps_of_the_whole(monkeypatch):
    few, image = torch.rand(1, 1, 8, 8), torch.rand(1, 3, 64, 64)
    monkeypatch.setattr(filters, "PIXELS_OF_A_BAND", 64)
    assert largest_tensor(lambda: joint_bilateral_upsample(few, image, 0.1)) <= image.nbytes


def test_joint_bilateral_upsample_finds_edges_that_bilinear_does_not():
    """A real picture; its own brightness mask as the label, coarse by 8: the share of wrong pixels after a threshold."""
    image = torch.tensor(skimage.data.coffee()).permute(2, 0, 1)[None].float() / 255  # 400 x 600
    label = (image.mean(1, keepdim=True) > 0.5).float()
    coarse = F.avg_pool2d(label, 8)
    ours = joint_bilateral_upsample(coarse, image, 0.1)
    plain = F.interpolate(coarse, scale_factor=8, mode="bilinear")
    wrong = [((x > 0.5) != label.bool()).float().mean().item() for x in (ours, plain)]
    assert wrong[0] < 0.85 * wrong[1], wrong  # 0.049 against 0.063 when this was written


def spelt_out_pool(v, alpha, power, *, asymmetric):
    """Saeedan et al. with a 3 x 3 window, stride 2, padding 1, pixel by pixel."""
    b, c, h, w = v.shape
    ho, wo = (h - 1) // 2 + 1, (w - 1) // 2 + 1
    binomial = torch.tensor([0.25, 0.5, 0.25], dtype=D)
    smooth = F.conv2d(v.reshape(b * c, 1, h, w), torch.outer(binomial, binomial)[None, None], padding=1).view(
        b, c, h, w
    )
    out = torch.zeros(b, c, ho, wo, dtype=D)
    for y in range(ho):
        for x in range(wo):
            near = v[:, :, max(0, 2 * y - 1) : 2 * y + 2, max(0, 2 * x - 1) : 2 * x + 2].flatten(2)
            d = near - smooth[:, :, 2 * y, 2 * x, None]
            d = d.clamp_min(0) if asymmetric else d
            weight = alpha + (d**2 + 1e-4) ** (power / 2)
            out[:, :, y, x] = (weight * near).sum(-1) / weight.sum(-1)
    return out


@pytest.mark.parametrize("asymmetric", [False, True])
def test_detail_preserving_pooling_is_the_equation(asymmetric):
    (v,) = images(3)
    for alpha, power in ((0.0, 1.0), (0.2, 1.7), (0.1, -0.5)):
        ours = detail_preserving_pool2d(v, alpha=alpha, lambda_=power, asymmetric=asymmetric)
        torch.testing.assert_close(ours, spelt_out_pool(v, alpha, power, asymmetric=asymmetric))
    average = F.avg_pool2d(v, 3, 2, 1, count_include_pad=False)
    torch.testing.assert_close(detail_preserving_pool2d(v, lambda_=0.0, asymmetric=asymmetric), average)
    nearly = detail_preserving_pool2d(v, alpha=1e7, asymmetric=asymmetric)
    torch.testing.assert_close(nearly, average, rtol=1e-6, atol=0)


def test_detail_preserving_pooling_learns_a_number_a_channel():
    (v,) = images(3)
    alpha, power = (torch.rand(3, dtype=D, requires_grad=True) for _ in range(2))
    each = [detail_preserving_pool2d(v[:, c : c + 1], alpha=alpha[c], lambda_=power[c]) for c in range(3)]
    together = detail_preserving_pool2d(v, alpha=alpha, lambda_=power)
    torch.testing.assert_close(together, torch.cat(each, 1))
    together.sum().backward()
    assert alpha.grad.abs().min() > 0
    assert power.grad.abs().min() > 0


@pytest.mark.parametrize("options", [{}, {"dilation": 2}, {"stride": 2, "padding": (1, 0)}], ids=str)
@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_filters_are_unfold_times_filters(options, per_channel):
    (v,) = images(3)
    padding = options.get("padding", (options.get("dilation", 1), 2 * options.get("dilation", 1)))
    unfolded = F.unfold(v, (3, 5), options.get("dilation", 1), padding, options.get("stride", 1)).unflatten(
        1, (3, 15)
    )
    size = pac_ops.geometry.Window(
        (3, 5),
        *((n, n) for n in (options.get("stride", 1),)),
        padding,
        *((n, n) for n in (options.get("dilation", 1),)),
    ).output_size(11, 9)
    filters = torch.randn(2, 45 if per_channel else 15, *size, dtype=D)
    expected = (unfolded * filters.flatten(2).unflatten(1, (3 if per_channel else 1, 15))).sum(2).unflatten(-1, size)
    torch.testing.assert_close(dynamic_filter2d(v, filters, (3, 5), **options), expected)


CALLS = {
    "bilateral": (lambda v, f: bilateral_filter(v, 3, 0.3, 1.0), (5, 4)),
    "joint bilateral": (lambda v, f: joint_bilateral_filter(v, f, 3, 0.3, 1.0), (5, 4)),
    "upsample": (lambda v, f: joint_bilateral_upsample(v, f, 0.4, kernel_size=3), (7, 6)),
    "detail": (lambda v, f: detail_preserving_pool2d(v, alpha=0.1), (5, 4)),
    "dynamic": (lambda v, f: dynamic_filter2d(v, f, 3), (5, 4)),
    # what else is learnable, made from f
    "bilateral, sigma": (lambda v, f: bilateral_filter(v, 3, 0.2 + f.mean(), 1.0), (5, 4)),
    "upsample, sigma": (lambda v, f: joint_bilateral_upsample(v, f, 0.2 + f.mean(), kernel_size=3), (7, 6)),
    "detail, numbers": (
        lambda v, f: detail_preserving_pool2d(v, alpha=f.mean((0, 2, 3))[:2], lambda_=f.mean()),
        (5, 4),
    ),
}


def call(name, dtype=D):
    run, size = CALLS[name]
    v = torch.rand(1, 2, 5, 4, dtype=D).to(dtype)
    return run, v, torch.rand(1, 9, *size, dtype=D).to(dtype)


@pytest.mark.parametrize("name", CALLS)
def test_gradients(name):
    run, v, f = call(name)
    assert torch.autograd.gradcheck(run, (v.requires_grad_(), f.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_narrower_dtypes(name, dtype):
    run, v, f = call(name, dtype)
    out = run(v, f)
    assert out.dtype == dtype
    expected = run(v.double(), f.double())
    torch.testing.assert_close(out.double(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("name", CALLS)
def test_compiled_in_one_graph(name):
    run, v, f = call(name, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(v, f), run(v, f))


def test_no_copies_of_all_taps():
    """No allocation comes near 25 copies of the channels; the upsampling's do not come near 25 maps."""
    v = torch.rand(1, 24, 128, 128)
    all_taps = 25 * v.numel() * 4
    assert 0 < largest_allocation(lambda: joint_bilateral_filter(v, v[:, :3], 5, 0.1, 1.5)) < all_taps / 4
    few = v[:, :2, ::4, ::4]
    assert 0 < largest_allocation(lambda: joint_bilateral_upsample(few, v[:, :3], 0.1)) <= 3 * v[0, 0].numel() * 4


def largest_allocation(run):
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return max(event.self_cpu_memory_usage for event in profile.events())


V, G = torch.rand(1, 2, 6, 6), torch.rand(1, 3, 6, 6)
WRONG = {
    "guide size": (lambda: joint_bilateral_filter(V, G[..., 1:], 3, 1, 1), r"guide must be .*\[1, G, 6, 6\], got \[1, 3, 6, 5\]"),
    "border": (lambda: bilateral_filter(V, 3, 1, 1, "mirror"), "border_type must be one of .*got 'mirror'"),
    "even window": (lambda: bilateral_filter(V, 4, 1, 1), r"kernel_size must be odd.*got \(4, 4\)"),
    "reflect too far": (lambda: bilateral_filter(V, 13, 1, 1), r"kernel_size must reach at most 5 rows .*got \(13, 13\)"),
    "circular too far": (lambda: bilateral_filter(V, 15, 1, 1, "circular"), r"kernel_size must reach at most 6 rows .*got \(15, 15\)"),
    "sigma_color type": (lambda: bilateral_filter(V, 3, "a", 1), "sigma_color must be a number or a tensor, got str"),
    "sigma_color device": (lambda: bilateral_filter(V, 3, torch.ones(1, device="meta"), 1), "sigma_color must be on the guide's device cpu, got meta"),
    "nothing to enlarge": (lambda: joint_bilateral_upsample(V[:, :, :0], G, 1), r"input must have a pixel .*got \[1, 2, 0, 6\]"),
    "window too large": (lambda: dynamic_filter2d(V, G, 9, padding=0), r"the window \(9, 9\) .*must fit the image, got 6 x 6"),
    "alpha type": (lambda: detail_preserving_pool2d(V, alpha="a"), "alpha must be a number or a tensor, got str"),
    "lambda": (lambda: detail_preserving_pool2d(V, lambda_=torch.ones(5)), r"lambda_ must hold 1 number or 2, got \[5\]"),
    "sigma_color": (lambda: bilateral_filter(V, 3, 0, 1), "sigma_color must be positive, got 0"),
    "sigma_color shape": (lambda: bilateral_filter(V, 3, torch.ones(3), 1), r"sigma_color must hold 1 number or 1, got \[3\]"),
    "sigma_space": (lambda: bilateral_filter(V, 3, 1, (1, -1)), r"sigma_space must be .*got \(1, -1\)"),
    "smaller guide": (lambda: joint_bilateral_upsample(V, G[..., 1:], 1), r"guide must be at least .*\[6, 6\], got \[6, 5\]"),
    "guide batch": (lambda: joint_bilateral_upsample(V, G.expand(2, -1, -1, -1), 1), r"guide must be .*got \[2, 3, 6, 6\]"),
    "filters": (lambda: dynamic_filter2d(V, G, 3), r"filters must be .*\[1, 9, 6, 6\] or .*\[1, 18, 6, 6\], got \[1, 3, 6, 6\]"),
    "alpha": (lambda: detail_preserving_pool2d(V, alpha=torch.ones(5)), r"^alpha must hold 1 number or 2, got \[5\]"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_one_clear_line(name):
    run, message = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=message) as error:
        run()
    assert "\n" not in str(error.value)
