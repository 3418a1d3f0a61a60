"""CIE L*a*b* of images: known colours, the compiled kernel against float64, and what it refuses."""

import pytest
import torch
from torch.autograd import gradcheck

import pac_ops
from pac_ops import srgb_to_lab

# L*, a*, b* of sRGB's primaries and greys under D65, as colour tables have them.
KNOWN = {
    (1, 1, 1): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
    (1, 0, 0): (53.24, 80.09, 67.20),
    (0, 1, 0): (87.73, -86.18, 83.18),
    (0, 0, 1): (32.30, 79.19, -107.86),
    (0.5, 0.5, 0.5): (53.39, 0.0, 0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rgb", KNOWN, ids=str)
def test_known_colours(rgb, dtype):
    image = torch.tensor(rgb, dtype=dtype).view(1, 3, 1, 1).expand(1, 3, 2, 5)
    out = srgb_to_lab(image)
    assert out.dtype == dtype
    expected = torch.tensor(KNOWN[rgb], dtype=dtype).view(1, 3, 1, 1).expand_as(out) / 100
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-4)
    grey = srgb_to_lab(image.mean(1, keepdim=True))
    assert grey.shape == (1, 1, 2, 5)


@pytest.mark.parametrize(
    "shape", [(2, 3, 37, 53), (1, 1, 5, 7), (1, 3, 1, 1), (0, 3, 4, 4), (1, 3, 80, 100)], ids=str
)
def test_compiled_and_plain_alike(shape):
    torch.manual_seed(0)
    image = torch.rand(shape) * 1.4 - 0.2  # beyond 0..1 it is clamped
    with torch.no_grad():
        compiled, plain = srgb_to_lab(image), srgb_to_lab(image.double())
        with pac_ops.use_backend("reference"):
            torch.testing.assert_close(srgb_to_lab(image).double(), plain, rtol=0, atol=2e-6)
    torch.testing.assert_close(compiled.double(), plain, rtol=0, atol=3e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bgr", [False, True])
def test_a_normalisation_is_undone(dtype, bgr):
    torch.manual_seed(0)
    rgb = torch.rand(2, 3, 9, 11, dtype=torch.float64)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    given = rgb.flip(1) if bgr else rgb
    seen = (given - given.new_tensor(mean).view(1, 3, 1, 1)) / given.new_tensor(std).view(1, 3, 1, 1)
    out = srgb_to_lab(seen.to(dtype), mean, std, bgr)
    torch.testing.assert_close(out.double(), srgb_to_lab(rgb), rtol=0, atol=3e-6 if dtype == torch.float32 else 1e-12)
    one = srgb_to_lab((given / 2).to(dtype), std=(2.0,), bgr=bgr)
    torch.testing.assert_close(one.double(), srgb_to_lab(rgb), rtol=0, atol=3e-6 if dtype == torch.float32 else 1e-12)


def test_half_precision_memory_layout_and_nan():
    image = torch.rand(1, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    assert srgb_to_lab(image.bfloat16()).dtype == torch.float32
    last = image.contiguous(memory_format=torch.channels_last)
    assert torch.equal(srgb_to_lab(last), srgb_to_lab(image))
    image[0, 1, 3, 2] = torch.nan
    assert srgb_to_lab(image).isnan().any(1).sum() == 1


def test_gradients_and_compile():
    image = torch.rand(1, 3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    assert gradcheck(srgb_to_lab, image.requires_grad_())
    compiled = torch.compile(srgb_to_lab, fullgraph=True, backend="aot_eager")
    single = image.detach().float()
    torch.testing.assert_close(compiled(single), srgb_to_lab(single), rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        (torch.ones(1, 4, 2, 2), {}, ValueError, r"image must have 3 channels, or 1 .*, got \[1, 4, 2, 2\]"),
        (
            torch.zeros(1, 3, 2, 2, dtype=torch.uint8),
            {},
            TypeError,
            "image must have a floating dtype, got torch.uint8",
        ),
        (torch.ones(1, 3, 2, 2), {"mean": (0.5, 0.5)}, ValueError, "mean must be 3 numbers or one for all, got 2"),
        (torch.ones(1, 1, 2, 2), {"std": (1.0,) * 3}, ValueError, "std must be 1 numbers or one for all, got 3"),
    ],
    ids=str,
)
def test_refusals(image, options, error, message):
    with pytest.raises(error, match=message):
        srgb_to_lab(image, **options)
