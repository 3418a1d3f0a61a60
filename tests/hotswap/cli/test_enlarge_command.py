"""`hotswap enlarge`, from files to a file."""

import json

import numpy as np
import pytest
import torch
from command_line import error_of, run
from PIL import Image

import hotswap
from hotswap.zoo import images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    Image.fromarray(draw.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save("photo.png")
    labels = np.tile(np.arange(12, dtype=np.uint8) // 4, (8, 1))
    picture = Image.fromarray(labels)
    picture.putpalette([1, 2, 3, 4, 5, 6, 7, 8, 9])
    picture.save("labels.png")
    Image.fromarray(labels.astype(np.uint16) * 1000).save("depth.png")
    np.save("scores.npy", draw.normal(size=(3, 8, 12)).astype(np.float32))
    np.save("depth.npy", draw.random((8, 12)))
    return tmp_path


def photo(folder):
    return images.read(folder / "photo.png")


def test_labels_keep_their_palette(folder):
    run("enlarge", "labels.png", "photo.png", "-o", "out.png")
    out = Image.open("out.png")
    assert (out.mode, out.getpalette()[:9]) == ("P", list(range(1, 10)))
    assert np.array_equal(np.array(out), np.array(hotswap.enlarge(Image.open("labels.png"), photo(folder))))
    run("enlarge", "labels.png", "photo.png", "-o", "out.npy")
    assert np.array_equal(np.load("out.npy"), np.array(out))


def test_depth_in_16_bits_stays_so(folder):
    run("enlarge", "depth.png", "photo.png", "-o", "out.png")
    out = Image.open("out.png")
    assert out.mode == "I;16"
    assert np.array_equal(np.array(out), np.array(hotswap.enlarge(Image.open("depth.png"), photo(folder))))


def test_scores_as_scores_and_as_labels(folder):
    run("enlarge", "scores.npy", "photo.png", "-o", "out.npy")
    scores = np.load("scores.npy")
    assert np.array_equal(np.load("out.npy"), hotswap.enlarge(scores, photo(folder)))
    run("enlarge", "scores.npy", "photo.png", "-o", "out.png", "--labels")
    expected = hotswap.enlarge(scores, photo(folder), labels=True)
    out = Image.open("out.png")
    assert out.mode == "L"
    assert np.array_equal(np.array(out), expected)
    run("enlarge", "scores.npy", "photo.png", "-o", "labels.npy", "--labels")
    assert np.load("labels.npy").dtype == np.uint8
    assert np.array_equal(np.load("labels.npy"), expected)


def test_options_reach_the_library_and_json_says_them(folder):
    options = {"scale": 3.0, "space": "rgb", "footprint": (4, 2), "kind": "scores", "align_corners": True}
    words = ("--scale", 3, "--space", "rgb", "--footprint", "4,2", "--kind", "scores", "--align-corners")
    done = run("enlarge", "depth.npy", "photo.png", "-o", "out.npy", *words, "--json")
    assert json.loads(done.stdout) == {
        "map": "depth.npy", "image": "photo.png", "output": "out.npy", "kind": "scores", "from": [8, 12],
        "to": [32, 48], "footprint": [4, 2], "halvings": 0, "scale": 3.0, "space": "rgb",
    }  # fmt: skip
    assert np.array_equal(np.load("out.npy"), hotswap.enlarge(np.load("depth.npy"), photo(folder), **options))
    words = ("--ignore", 2, "--stretched", "--quiet")
    np.save("narrow.npy", np.array(Image.open("labels.png"))[:, ::2])
    done = run("enlarge", "narrow.npy", "photo.png", "-o", "out.png", *words)
    assert done.output == ""
    expected = hotswap.enlarge(np.load("narrow.npy"), photo(folder), ignore=2, stretched=True)
    assert np.array_equal(np.array(Image.open("out.png")), expected)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("scores.npy", "photo.png", "-o", "out.png"), "a picture holds whole numbers"),
        (("depth.npy", "photo.png", "-o", "out.png"), "with .npy"),
        (("signed.npy", "photo.png", "-o", "out.png"), "from 0 to 65535, got -1"),
        (("labels.png", "small.png", "-o", "out.png"), "no smaller than the map"),
        (("labels.png", "wide.png", "-o", "out.png"), "one aspect ratio"),
        (("photo.png", "photo.png", "-o", "out.png"), "give labels as indices"),
        (("broken.png", "photo.png", "-o", "out.png"), "cannot read map 'broken.png'"),
        (("broken.npy", "photo.png", "-o", "out.png"), "cannot read map 'broken.npy'"),
        (("objects.npy", "photo.png", "-o", "out.npy"), "cannot read map 'objects.npy'"),
        (("labels.png", "broken.png", "-o", "out.png"), "cannot read image 'broken.png'"),
        (("depth.npy", "photo.png", "--labels", "-o", "out.png"), "labels are of scores"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(folder, words, reason):
    np.save("signed.npy", np.full((8, 12), -1))
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    Image.new("RGB", (8, 4)).save("small.png")
    Image.new("RGB", (200, 32)).save("wide.png")
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    (folder / "broken.npy").write_bytes(b"\x93NUMPY nothing")
    before = sorted(folder.iterdir())
    assert reason in error_of(run("enlarge", *words, code=1))
    assert sorted(folder.iterdir()) == before


def test_a_map_larger_than_a_byte_goes_to_16_bits(folder):
    np.save("many.npy", np.tile(np.array([0, 300]).repeat(6), (8, 1)))
    run("enlarge", "many.npy", "photo.png", "-o", "out.png")
    assert set(np.unique(np.array(Image.open("out.png")))) == {0, 300}
    assert torch.equal(
        torch.from_numpy(np.array(Image.open("out.png")).astype(np.int64)),
        torch.from_numpy(hotswap.enlarge(np.load("many.npy"), photo(folder))),
    )
