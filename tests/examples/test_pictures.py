import numpy as np
import pytest
import torch

import pac_ops
from examples.pictures import MARKS, capture_kernel, difference, kernel_sheet, photograph, spread
from recipes.pictures import CAPTION, MARGIN


def test_a_photograph_is_rgb_in_0_to_1():
    photo = photograph("coffee")
    assert photo.shape == (1, 3, 400, 600)
    assert 0 <= photo.min() < 0.1 < 0.9 < photo.max() <= 1
    red, _, blue = photo[0, :, 330, 150]  # the red saucer
    assert red > 2 * blue


def test_a_photograph_that_is_not_in_the_wheel_is_an_error_that_helps():
    with pytest.raises(FileNotFoundError, match=r"skimage/data/kodim01\.png .* pip install scikit-image"):
        photograph("kodim01")


@pytest.mark.parametrize(
    ("change", "gain"), [(0.0, 1), (0.9, 1), (0.5, 2), (0.3, 2), (0.003, 200), (0.0011, 500), (4e-6, 200_000)]
)
def test_differences_are_amplified_by_a_round_factor(change, gain):
    plain = torch.zeros(1, 4, 4, dtype=torch.float64)
    _, found = difference(plain, plain + change)
    assert found == gain


def test_differences_are_red_where_more_blue_where_less_white_where_none():
    plain = torch.full((1, 1, 3), 0.5)
    picture, gain = difference(plain, torch.tensor([[[0.9, 0.5, 0.1]]]))
    assert gain == 2
    more, none, less = picture[0].astype(int)
    assert more[0] > more[2] + 80
    assert none.tolist() == [255, 255, 255]
    assert less[2] > less[0] + 80


def test_a_difference_beyond_full_colour_stays_at_full_colour():
    plain = torch.zeros(1, 100, 10)
    swapped = plain + 0.0009
    swapped[0, 0, 0] = 0.9  # one pixel of a thousand does not set the factor
    picture, gain = difference(plain, swapped)
    assert gain == 1000
    assert picture[0, 0].tolist() == [200, 30, 30]


def _uniform(height=15, width=15):
    return torch.ones(1, 3, 3, height, width)


def test_one_step_of_spreading_is_the_normalised_window():
    kernel = _uniform()
    window = torch.tensor([[0.1, 0.2, 0.3], [0.4, 1.0, 0.5], [0.6, 0.7, 0.8]])
    kernel[0, :, :, 7, 6] = window
    share = spread(kernel, (7, 6), 1)
    torch.testing.assert_close(share[6:9, 5:8], window / window.sum())
    assert share.sum().item() == pytest.approx(1)


def test_spreading_with_k_1_is_symmetrical_and_sums_to_1_even_over_the_border():
    share = spread(_uniform(), (7, 7), 5)
    torch.testing.assert_close(share, share.flip(0))
    torch.testing.assert_close(share, share.T)
    assert share[7, 7] == share.max()
    assert spread(_uniform(), (0, 14), 20).sum().item() == pytest.approx(1)


def test_spreading_stops_at_an_edge_of_the_guide():
    guide = torch.zeros(1, 1, 15, 15)
    guide[..., 8:] = 10.0
    kernel = pac_ops.packernel2d(guide, padding=1)[0][0]
    share = spread(kernel, (7, 7), 10)
    assert share[:, 8:].sum() < 1e-6
    assert share[:, :8].sum().item() == pytest.approx(1)
    assert share[7, 0] > 0


def test_the_captured_kernel_is_the_one_of_the_guide(swapped_hed, hed, face):
    kernel = capture_kernel(swapped_hed, "conv3_3", face)
    assert kernel.shape == (1, 1, 3, 3, 50, 40)
    assert torch.equal(kernel[:, :, 1, 1], torch.ones(1, 1, 50, 40))
    with torch.no_grad():
        guide = hed.stages(face)[1]  # conv2_2 after its activation, twice the size
    resized = torch.nn.functional.interpolate(guide, size=(50, 40), mode="bilinear", align_corners=False)
    scale = swapped_hed.conv3_3.guide_scale
    wanted = pac_ops.packernel2d(resized * scale, padding=1)[0]
    torch.testing.assert_close(kernel[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], rtol=1e-3, atol=1e-4)


def test_capturing_leaves_no_hook_behind(swapped_hed, face):
    capture_kernel(swapped_hed, "conv4_3", face[:, :, :32, :32])
    assert not swapped_hed.conv4_3._forward_pre_hooks


def test_a_kernel_sheet_marks_the_pixels_and_draws_their_weights():
    photo = torch.full((3, 64, 64), 0.5)
    kernel = _uniform(16, 16)
    kernel[0, 0, :, 8, 8] = 0.0  # the upper neighbours of one pixel do not count
    places = [(8, 8), (34, 33)]  # the second lies in pixel 8, 8 of the kernel's map
    page = np.asarray(kernel_sheet("title", photo, kernel, places)).astype(int)
    assert page.shape[1] == 640 + 3 * (210 + MARGIN) + 2 * MARGIN
    left, zoom = MARGIN, 10
    grey = np.argwhere((page[:, left + 5] == 128).all(axis=1))
    top = grey.min()
    for (row, column), colour in zip(places, MARKS, strict=False):
        y, x = top + row * zoom, left + column * zoom
        ring = page[y - 9 : y + 10, x - 9 : x + 10]
        assert ((ring - colour) ** 2).sum(axis=2).min() == 0
    column = 2 * MARGIN + 640 + 210 + MARGIN  # where the grids of weights begin
    first, second = (page[top + i * (210 + CAPTION + 10 + MARGIN) :][:210, column : column + 210] for i in (0, 1))
    # Sampled beside the number in the middle of each field.
    assert [first[y, 10].tolist() for y in (10, 80, 150)] == [[255] * 3] * 3
    assert [second[y, 10].tolist() for y in (10, 80, 150)] == [[0] * 3, [255] * 3, [255] * 3]


def test_a_kernel_sheet_refuses_pixels_outside_the_photo():
    with pytest.raises(ValueError, match=r"in the photo, 8 rows by 6, got \[\(2, 6\)\]"):
        kernel_sheet("title", torch.zeros(3, 8, 6), _uniform(8, 6), [(7, 5), (2, 6)])


def test_a_kernel_sheet_refuses_more_pixels_than_it_has_colours():
    with pytest.raises(ValueError, match="at most 5 places can be marked, got 6"):
        kernel_sheet("title", torch.zeros(3, 8, 8), _uniform(8, 8), [(0, 0)] * 6)
