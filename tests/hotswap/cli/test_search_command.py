"""`hotswap search`, from folders to a file."""

import json
import shutil
from pathlib import Path

import blobs
import numpy as np
import pytest
import torch
from command_line import error_of, run
from PIL import Image

import hotswap
from hotswap.checkpoint.read import read
from hotswap.searching.family import STRENGTHS
from hotswap.searching.tasks import Classes

NET, FORM = "blobs:Coarse", ("--mean", "0", "--std", "1")


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blobs.save(tmp_path)
    return tmp_path


def test_it_writes_the_swapped_network_and_says_so(folders):
    done = run("search", NET, "--images", "photos", "--labels", "labels", *FORM, "-o", "best.pt")
    assert done.stdout.splitlines()[-1].startswith("Swap this: resize_1 ")
    assert "wrote best.pt" in done.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["best.html", "best.pt", "labels", "photos"]
    best = hotswap.load("best.pt", model=blobs.Coarse())
    again = json.loads(
        run("search", NET, "--images", "photos", "--labels", "labels", *FORM, "-o", "best.pt", "--json").stdout
    )
    assert again["swap"] is True
    assert [entry.guide_scale for entry in hotswap.status(best).plan.entries] == again["chosen"]["scales"]


def test_masks_of_one_class_in_another_size(folders):
    for file in Path("labels").iterdir():
        labels = np.array(Image.open(file))
        mask = Image.fromarray(((labels == 2) * 255).astype(np.uint8))
        mask.resize((mask.width * 2, mask.height * 2), Image.Resampling.NEAREST).save(file.with_suffix(".jpg"))
        file.unlink()
    words = ("search", NET, "--images", "photos", "--labels", "labels", *FORM, "-o", "best.safetensors")
    assert "the network has 4: say which one" in error_of(run(*words, code=1))
    result = json.loads(run(*words, "--class", "2", "--json", "--input-size", "64x96").stdout)
    assert (result["metric"], result["swap"], result["sizes"]) == ("iou", True, [[64, 96]])
    assert result["output"] == "best.safetensors"


def test_leaving_it_writes_no_network(folders):
    for file in Path("labels").iterdir():
        columns = np.indices((64, 96))[1]
        Image.fromarray((columns > 48).astype(np.uint8)).save(file)
    words = ("search", "blobs:Blind", "--images", "photos", "--labels", "labels", *FORM, "-o", "best.pt")
    done = run(*words)
    assert done.stdout.splitlines()[-1].startswith("Leave it: ")
    assert "note: best.pt is not written" in done.stderr
    assert not Path("best.pt").exists()
    assert "leave it" in Path("best.html").read_text()


def test_without_labels_it_says_what_changes(folders):
    done = run("search", NET, "--images", "photos", *FORM)
    assert "of these within 3 px of edges" in done.stdout
    assert "Without labels nothing is chosen" in done.stdout
    result = json.loads(run("search", NET, "--images", "photos", *FORM, "--json", "--limit", "3").stdout)
    assert result["images"] == "3 images from photos"
    assert len(result["changes"]) >= 2 * len(STRENGTHS)
    assert sorted(path.name for path in Path().iterdir()) == ["labels", "photos"]


def test_weights_are_loaded(folders):
    net = blobs.Coarse()
    with torch.no_grad():
        net.conv.weight.mul_(-1)
        net.conv.bias.mul_(-1)
    torch.save(net.state_dict(), "w.pt")
    words = ("search", NET, "--images", "photos", "--labels", "labels", *FORM, "-o", "best.pt", "--json")
    results = [json.loads(run(*words, *more).stdout) for more in ((), ("--weights", "w.pt"))]
    plain = [result["chosen"]["gains"]["miou"]["plain"] for result in results]
    assert plain[1] < 0.2 < plain[0]


def test_a_network_that_does_not_take_the_images_size(folders):
    words = ("search", "blobs:Fixed", "--images", "photos", "--labels", "labels", *FORM, "-o", "best.pt")
    message = error_of(run(*words, code=1))
    assert "the network does not run on an image [1, 3, 64, 96]" in message
    assert "(on the command line: --input-size)" in message
    done = run(*words, "--input-size", "40")
    assert "maps of 40 x 40" in done.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--labels", "empty"), "there is no label in 'empty'"),
        (("--labels", "nowhere"), "cannot read labels from 'nowhere'"),
        (("--images", "empty"), "there is no image in 'empty'"),
        (("--labels", "odd"), "'odd/00.png' has 96 x 64 pixels and image '00.png' 64 x 96"),
        (("--labels", "broken"), "cannot read label 'broken/00.png'"),
        (("--images", "cut"), "cannot read image 'cut/19.png'"),
        (("--limit", "5"), "at least 8 labelled images, got 5"),
        (("-o", "best.onnx"), "a checkpoint's name must end in .safetensors or .pt"),
        (("-o", "nowhere/best.pt"), "there is no folder"),
        (("--metric", "rmse"), "labels must have the 4 channels of the network's map, got 1"),
    ],
)
def test_mistakes_are_one_line(folders, change, message):
    for name in ("empty", "odd", "broken"):
        Path(name).mkdir()
    shutil.copytree("photos", "cut")
    Path("cut/19.png").write_bytes(b"nonsense")
    for file in Path("labels").iterdir():
        Image.open(file).transpose(Image.Transpose.ROTATE_90).save(Path("odd", file.name))
        Path("broken", file.name).write_bytes(b"nonsense")
    given = {"--images": "photos", "--labels": "labels", "-o": "best.pt", change[0]: change[1]}
    words = [word for pair in given.items() for word in pair]
    assert message in error_of(run("search", NET, *FORM, *words, code=1))
    assert not list(Path().glob("best*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--labels", "labels"), "Missing option '-o'"),
        (("-o", "best.pt"), "which needs labels: give --labels"),
    ],
)
def test_wrong_usage(folders, words, message):
    assert message in run("search", NET, "--images", "photos", *words, code=2).stderr
    missing = run("search", "torchvision:fcn_resnet50", "--images", "photos", code=2)
    assert "Missing option '--weights'" in missing.stderr


def test_ctrl_c_leaves_what_was_measured_and_the_same_command_goes_on(folders, monkeypatch):
    words = ("search", NET, "--images", "photos", "--labels", "labels", *FORM, "-o", "best.pt", "--json")
    whole = json.loads(run(*words).stdout)
    Path("best.pt").unlink()
    Path("best.html").unlink()
    calls = []
    measure = Classes.measure

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return measure(self, *arguments)

    monkeypatch.setattr(Classes, "measure", interrupted)
    stopped = run(*words, code=1)
    assert "the same command goes on from what was measured, in best.pt.search" in stopped.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["best.pt.search", "labels", "photos"]
    again = run(*words)
    assert "note: going on from best.pt.search" in again.stderr
    assert json.loads(again.stdout) == whole
    assert len(calls) == 30 + total(whole) - 29
    assert not Path("best.pt.search").exists()


def total(result):
    """How often a network was measured: the swaps on the images that each was tried on, the plain one on all."""
    seen = sum(tried["gains"]["miou"]["images"] for tried in result["tried"])
    return seen + result["chosen"]["gains"]["miou"]["images"] + 20


def test_the_file_says_how_images_were_normalised(folders):
    run("search", NET, "--images", "photos", "--labels", "labels", "--mean", "0", "--std", "1", "-o", "best.pt")
    metadata = read("best.pt").metadata
    assert (metadata.images.mean, metadata.images.std) == ((0.0,) * 3, (1.0,) * 3)
