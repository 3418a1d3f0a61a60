"""Labels in files of every kind, and how they are paired with images."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hotswap import colours
from hotswap.errors import HotswapError
from hotswap.searching import pairs
from hotswap.searching.labels import Reader, reader_for
from hotswap.searching.samples import check_shape

INDICES = np.array([[0, 1, 1], [20, 255, 0]], np.uint8)
MASK = INDICES == 1


def write(path, values, mode=None):
    Image.fromarray(values, mode).save(path)
    return path


def palette(path):
    image = Image.fromarray(INDICES, "P")
    image.putpalette(colours.labels_palette().tobytes())
    image.save(path)
    return path


def flow(path):
    values = np.arange(12, dtype="<f4").reshape(2, 3, 2)
    path.write_bytes(b"PIEH" + struct.pack("<ii", 3, 2) + values.tobytes())
    return path


def read(file, **options):
    return reader_for([file], **{"numbers": None, "unit": 1.0} | options).read(file)


@pytest.mark.parametrize(
    "write_it",
    [
        lambda path: write(path, INDICES),
        palette,
        lambda path: write(path, colours.labels_palette()[INDICES]),
        lambda path: write(path.with_suffix(".bmp"), INDICES),
        lambda path: np.save(path.with_suffix(".npy"), INDICES.astype(np.int32)) or path.with_suffix(".npy"),
    ],
    ids=["grey", "palette", "VOC colours", "bmp", "npy"],
)
def test_indices_in_whatever_file(tmp_path, write_it):
    file = write_it(tmp_path / "x.png")
    assert reader_for([file], numbers=None, unit=1.0) == Reader(masks=False, numbers=False)
    assert torch.equal(read(file), torch.from_numpy(INDICES.astype(np.int64)))


@pytest.mark.parametrize(
    "write_it",
    [
        lambda path: write(path, MASK * np.uint8(255)),
        lambda path: write(path, MASK * np.uint8(1)),
        lambda path: write(path, np.repeat(MASK[..., None] * np.uint8(255), 3, axis=2)),
        lambda path: write(path, MASK),
        lambda path: np.save(path.with_suffix(".npy"), MASK) or path.with_suffix(".npy"),
    ],
    ids=["255", "1", "RGB", "one bit", "npy"],
)
def test_masks_in_whatever_file(tmp_path, write_it):
    file = write_it(tmp_path / "x.png")
    assert reader_for([file], numbers=None, unit=1.0).masks
    assert torch.equal(read(file), torch.from_numpy(MASK.astype(np.int64)))


def test_a_jpeg_is_a_mask_whatever_its_losses(tmp_path):
    large = np.kron(MASK, np.ones((10, 10), bool))
    file = tmp_path / "x.jpg"
    Image.fromarray(large * np.uint8(255)).save(file, quality=70)
    assert len(np.unique(np.array(Image.open(file)))) > 2
    assert torch.equal(read(file), torch.from_numpy(large.astype(np.int64)))


def test_255_is_an_index_where_another_file_of_the_folder_has_others(tmp_path):
    files = [write(tmp_path / "a.png", MASK * np.uint8(255)), write(tmp_path / "b.png", INDICES)]
    reader = reader_for(files, numbers=None, unit=1.0)
    assert not reader.masks
    assert reader.read(files[0]).unique().tolist() == [0, 255]


def test_depth_in_16_bits_has_a_unit_and_0_is_not_known(tmp_path):
    file = write(tmp_path / "x.png", np.array([[0, 500, 65535]], np.uint16))
    depth = read(file, unit=1000.0)
    assert depth.shape == (1, 1, 3)
    assert depth[0, 0, 0].isnan()
    assert depth[0, 0, 1:].tolist() == pytest.approx([0.5, 65.535])


def test_numbers_in_other_files(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[0.5, np.nan]], np.float32))
    assert read(tmp_path / "x.npy").nan_to_num(9).tolist() == [[[0.5, 9.0]]]
    assert read(write(tmp_path / "y.png", np.array([[0, 51]], np.uint8)), numbers=True).tolist() == [
        [[0.0, pytest.approx(0.2)]]
    ]
    read_flow = read(flow(tmp_path / "x.flo"))
    assert read_flow[:, 1, 2].tolist() == [10.0, 11.0]
    np.save(tmp_path / "z.npy", np.moveaxis(np.arange(12, dtype=np.float32).reshape(2, 3, 2), 2, 0))
    assert torch.equal(read(tmp_path / "z.npy"), read_flow)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.png", b"nonsense", "cannot read label"),
        ("x.npy", b"nonsense", "cannot read label"),
        ("x.flo", b"PIEH\1\0\0\0", "is damaged"),
        ("x.flo", b"nonsense", "is no .flo file"),
    ],
)
def test_damaged_files_are_one_line(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(HotswapError, match=message):
        read(file)


def test_what_is_no_label_is_refused(tmp_path):
    with pytest.raises(HotswapError, match=r"has the colour \[1, 2, 3\], which is none of PASCAL VOC's"):
        read(write(tmp_path / "x.png", np.full((2, 2, 3), (1, 2, 3), np.uint8)))
    np.save(tmp_path / "x.npy", np.zeros((2, 2, 7), np.int64))
    with pytest.raises(HotswapError, match=r"must hold whole numbers \[H, W\]"):
        read(tmp_path / "x.npy")
    np.save(tmp_path / "y.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(HotswapError, match="cannot read label"):
        read(tmp_path / "y.npy")


# --- pairs --------------------------------------------------------------------------------------------------------


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        write(folder / name, np.zeros((2, 2), np.uint8)) if name.endswith((".png", ".jpg", ".webp")) else (
            folder / name
        ).write_text("x")
    return folder


def named(found):
    return [(pair.image.name, pair.label and pair.label.name) for pair in found]


def test_labels_have_their_images_names(tmp_path):
    images, labels = touch(tmp_path / "i", "a.jpg", "b.jpg", "b2.jpg", "c.jpg"), tmp_path / "l"
    touch(labels, "a.png", "b_mask.png", "b2.flo", "other.txt")
    found, notes = pairs.find(images, labels, 100)
    assert named(found) == [("a.jpg", "a.png"), ("b.jpg", "b_mask.png"), ("b2.jpg", "b2.flo")]
    assert notes == ["1 of 4 images have no label, such as 'c.jpg'"]
    assert named(pairs.find(images, labels, 2)[0]) == [("a.jpg", "a.png"), ("b.jpg", "b_mask.png")]
    assert named(pairs.find(images, None, 100)[0])[0] == ("a.jpg", None)


def test_one_folder_may_hold_both(tmp_path):
    folder = touch(tmp_path / "both", "a.webp", "a.png", "b.jpg", "b.npy", "c.png")
    assert named(pairs.find(folder, folder, 100)[0]) == [("a.webp", "a.png"), ("b.jpg", "b.npy")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "there is no label in"),
        (("a.xml",), "there is no label in .*'a.xml' is something else"),
        (("x.png",), "no image has a label of its name: .* holds 'a.jpg', .* 'x.png'"),
        (("a_1.png", "a_2.png"), "no image has a label of its name"),
    ],
)
def test_without_pairs_it_is_one_line(tmp_path, names, message):
    with pytest.raises(HotswapError, match=message):
        pairs.find(touch(tmp_path / "i", "a.jpg"), touch(tmp_path / "l", *names), 100)
    with pytest.raises(HotswapError, match="cannot read labels from"):
        pairs.find(tmp_path / "i", Path("nowhere"), 100)


def test_sizes_may_differ_and_aspect_ratios_may_not():
    check_shape(torch.zeros(195, 230), (390, 460), "label", "image")
    check_shape(torch.zeros(2, 100, 134), (375, 500), "label", "image")
    with pytest.raises(HotswapError, match="label has 230 x 195 pixels and image 390 x 460: their aspect ratios"):
        check_shape(torch.zeros(230, 195), (390, 460), "label", "image")
