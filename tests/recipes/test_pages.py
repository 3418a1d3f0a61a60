import numpy as np
import torch

from recipes.pictures import CAPTION, MARGIN, pixels, sheet


def test_pixels_round_and_clip_and_spread_a_single_channel():
    assert pixels(torch.tensor([[[0.0, 0.5, 1.0, -1.0, 2.0]]]))[0].tolist() == [
        [v] * 3 for v in (0, 128, 255, 0, 255)
    ]
    assert pixels(torch.tensor([1.0, 0.2, 0.0]).view(3, 1, 1))[0, 0].tolist() == [255, 51, 0]


def test_a_sheet_places_its_panels_under_their_captions():
    red = np.full((10, 20, 3), (255, 0, 0), np.uint8)
    green = np.full((20, 20, 3), (0, 255, 0), np.uint8)
    page = sheet("title", [[("one", red), ("two", green)], [("three", green)]], width=100)
    assert page.width == 2 * (100 + MARGIN) + MARGIN
    found = np.asarray(page).astype(int)

    def area(colour):
        rows, columns = np.nonzero((found == colour).all(axis=2))
        return rows.min(), columns.min(), len(rows)

    top, left, count = area((255, 0, 0))
    assert (left, count) == (MARGIN, 100 * 50)
    assert area((0, 255, 0)) == (top, MARGIN, 2 * 100 * 100)  # right of the first, and below it
    assert found[top + 50, 2 * MARGIN + 150].tolist() == [0, 255, 0]
    caption = found[top - CAPTION - 8 : top - 2, MARGIN : MARGIN + 100]
    assert (caption.sum(axis=2) < 200).sum() > 20  # there are dark letters above it
