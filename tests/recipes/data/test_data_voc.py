"""VOC 2012 with SBD: the splits, what an item holds, crops, and what is said of missing and damaged files."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_datasets import LISTS, labels, sbd_labels, voc

from hotswap.errors import HotswapError
from recipes.data.cropping import Cropping
from recipes.data.voc import VocSbd

# c and e are in both; e is in VOC's validation set, so SBD takes it from there.
TRAIN11 = ["2007_a", "2008_b", "2008_c", "2009_e", "2010_g", "2011_h"]
VAL11_SBD = ["2009_d", "2010_f"]


@pytest.fixture
def root(tmp_path):
    return voc(tmp_path, LISTS)


def test_splits_follow_from_the_lists(root):
    assert VocSbd(root, "train11").names == TRAIN11
    assert VocSbd(root, "val11_sbd").names == VAL11_SBD


def test_an_item_is_an_image_and_its_labels(root):
    image, classes = VocSbd(root, "val11_sbd")[1]
    devkit = root / "VOCdevkit" / "VOC2012"
    expected = np.array(Image.open(devkit / "JPEGImages" / "2010_f.jpg"))
    assert torch.equal((image * 255).round().byte(), torch.from_numpy(expected).permute(2, 0, 1))
    assert (image.dtype, classes.dtype) == (torch.float32, torch.int64)
    expected = np.array(Image.open(devkit / "SegmentationClass" / "2010_f.png"))
    assert torch.equal(classes, torch.from_numpy(expected).long())
    assert classes[0, :5].tolist() == [255] * 5


def test_an_image_of_both_has_vocs_labels_and_one_of_sbd_alone_sbds(root):
    data = VocSbd(root, "train11")
    values = labels()
    sbd_labels(root / "sbd" / "cls" / "2010_g.mat", values)
    assert torch.equal(data[TRAIN11.index("2010_g")][1], torch.from_numpy(values).long())
    for both in ("2008_c", "2009_e"):  # only VOC has pixels to ignore
        assert (data[TRAIN11.index(both)][1] == 255).sum() == 5


def test_crops_move_image_and_labels_together(tmp_path):
    root = voc(tmp_path, LISTS)
    position = np.arange(20 * 24).reshape(20, 24) % 21
    for name in LISTS["sbd"]:
        Image.fromarray(np.repeat((position * 12).astype(np.uint8)[..., None], 3, 2)).save(
            root / "sbd" / "img" / f"{name}.png"
        )
        (root / "sbd" / "img" / f"{name}.png").rename(root / "sbd" / "img" / f"{name}.jpg")  # PIL looks at the bytes
        sbd_labels(root / "sbd" / "cls" / f"{name}.mat", position.astype(np.uint8))
    data = VocSbd(root, "train11", crop=13, flip=True)
    seen = set()
    for _ in range(12):
        image, classes = data[TRAIN11.index("2011_h")]
        assert (image.shape, classes.shape) == ((3, 13, 13), (13, 13))
        assert torch.equal((image[0] * 255 / 12).round().long(), classes)
        seen.add("mirrored" if (classes[0, 0] - classes[0, 1]) % 21 == 1 else "as it is")
    assert seen == {"mirrored", "as it is"}


def test_a_crop_larger_than_the_image_ignores_what_is_beyond_it(root):
    image, classes = VocSbd(root, "train11", crop=32)[0]
    assert (image.shape, classes.shape) == ((3, 32, 32), (32, 32))
    assert (classes == 255).sum() == 32 * 32 - 20 * 24 + 5


def test_images_are_filled_up_to_multiples(root):
    plain, filled = VocSbd(root, "val11_sbd")[0], VocSbd(root, "val11_sbd", multiple=16)[0]
    assert (filled[0].shape, filled[1].shape) == ((3, 32, 32), (32, 32))
    for before, after in zip(plain, filled, strict=True):
        assert torch.equal(after[..., :20, :24], before)
    assert (filled[1][20:] == 255).all()
    assert (filled[1][:, 24:] == 255).all()
    torch.testing.assert_close(filled[0][:, 31, 31], torch.tensor([0.485, 0.456, 0.406]))


def test_loaders_in_other_processes_get_the_same(root):
    data = VocSbd(root, "train11", crop=16, flip=True)
    len(data)  # with its lists read
    again = pickle.loads(pickle.dumps(data))
    for index in (0, 5):
        items = []
        for either in (data, again):
            torch.manual_seed(0)
            items.append(either[index])
        assert torch.equal(items[0][0], items[1][0])
        assert torch.equal(items[0][1], items[1][1])


def test_the_seed_fixes_the_crop():
    image, classes = torch.rand(3, 40, 40), torch.arange(1600).view(40, 40)
    cropping = Cropping(9, flip=True)
    crops = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        crops.append(cropping(image, classes))
    assert torch.equal(crops[0][1], crops[1][1])
    assert not torch.equal(crops[0][1], crops[2][1])
    assert type(crops[0][0]) is torch.Tensor


def test_nothing_is_read_before_it_is_needed_and_lists_once(root, monkeypatch):
    data = VocSbd("/nowhere", "train11")  # made without a look
    with pytest.raises(HotswapError, match="is missing"):
        len(data)
    data = VocSbd(root, "train11")
    assert len(data) == 6
    for path in root.rglob("*.txt"):
        path.unlink()
    assert len(data) == 6
    data = VocSbd(root, "train11")
    with pytest.raises(HotswapError, match=r"SBD: '.*sbd/train.txt' is missing; get benchmark.tgz"):
        len(data)


LIST_FILES = [
    ("VOCdevkit/VOC2012/ImageSets/Segmentation/trainval.txt", "val11_sbd", 0, "VOC 2012"),
    ("TrainVal/VOCdevkit/VOC2011/ImageSets/Segmentation/val.txt", "train11", 0, "VOC 2011 lists"),
]
ITEM_FILES = [
    ("VOCdevkit/VOC2012/JPEGImages/2010_f.jpg", "val11_sbd", 1, "VOC 2012"),
    ("VOCdevkit/VOC2012/SegmentationClass/2009_d.png", "val11_sbd", 0, "VOC 2012"),
    ("sbd/img/2010_g.jpg", "train11", 4, "SBD"),
    ("sbd/cls/2011_h.mat", "train11", 5, "SBD"),
]


@pytest.mark.parametrize(("path", "split", "index", "source"), LIST_FILES + ITEM_FILES)
def test_a_missing_file_is_named_in_one_line(root, path, split, index, source):
    (root / path).unlink()
    with pytest.raises(HotswapError, match=f"^{source}: '{root / path}' is missing; get [^\n]*$"):
        VocSbd(root, split)[index]


@pytest.mark.parametrize(("path", "split", "index", "source"), ITEM_FILES)
def test_a_damaged_file_is_named_in_one_line(root, path, split, index, source):
    whole = (root / path).read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no image\n" * 40):
        (root / path).write_bytes(damaged)
        with pytest.raises(HotswapError, match=f"^{source}: '{root / path}' cannot be read \\(.*\\); get [^\n]*$"):
            VocSbd(root, split)[index]


def test_labels_out_of_range_or_of_another_size_are_damage(root):
    path = root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2009_d.png"
    Image.fromarray(np.full((20, 24), 21, np.uint8)).save(path)
    with pytest.raises(HotswapError, match="2009_d.png' must hold labels from 0 to 20 and 255, got 21; get"):
        VocSbd(root, "val11_sbd")[0]
    Image.fromarray(labels((5, 5))).save(path)
    with pytest.raises(HotswapError, match=r"2009_d.png' must be of its image's size, \[20, 24\]; get"):
        VocSbd(root, "val11_sbd")[0]


def test_an_image_no_list_of_2012_has_is_named(tmp_path):
    root = voc(tmp_path, LISTS | {"val11": ["2009_d", "2011_lost"]})
    with pytest.raises(HotswapError, match=r"trainval.txt' does not list 2011_lost, which VOC 2011 does; get"):
        VocSbd(root, "val11_sbd")[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "split must be one of train11, val11_sbd, got 'val'"),
        ({"split": "train11", "flip": True}, "flip needs crop, such as 449"),
        ({"split": "train11", "crop": 0}, "crop must be at least 1 pixel, got 0"),
        ({"split": "val11_sbd", "multiple": 0}, "multiple must be at least 1 pixel, got 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(HotswapError, match=message):
        VocSbd("/nowhere", **options)
