"""Pictures of predictions, in the colours people know."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_recipe import Small, invoke, written
from torch import nn
from torch.utils.data import Dataset

import hotswap
from hotswap.colours import labels_palette
from recipes import config
from recipes.drawing import draw, ramp
from recipes.pictures import pixels


def test_labels_have_the_colours_of_voc():
    # The first ones, and the rim, as published with the data set.
    assert labels_palette()[[0, 1, 2, 3, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]


def test_depth_goes_from_dark_blue_to_yellow():
    colours = ramp(torch.tensor([[[1.0, 2.0, 3.0, 9.0]]]), 1.0, 3.0)[0]
    assert colours[0].tolist() == [0x44, 0x01, 0x54]
    assert colours[2].tolist() == colours[3].tolist() == [0xFD, 0xE7, 0x25]
    assert (np.diff(colours[:3].sum(axis=1).astype(int)) > 0).all()


class Always(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, *inputs):
        return self.output[None]


IMAGE = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(0))


def test_segmentation_is_drawn_beside_input_and_truth():
    logits = torch.zeros(3, 4, 6)
    logits[1] = 1
    truth = torch.full((4, 6), 2)
    truth[0] = 255
    drawn = draw({"a": Always(logits)}, IMAGE, IMAGE, truth, config.Segmentation(name="segmentation"))
    assert [caption for caption, _ in drawn.panels] == ["input", "truth", "a"]
    shown, labels, found = (picture for _, picture in drawn.panels)
    assert (shown == pixels(IMAGE)).all()
    assert labels[0, 0].tolist() == [224, 224, 192]
    assert labels[1, 0].tolist() == [0, 128, 0]
    assert (found == [128, 0, 0]).all()
    assert drawn.predictions["a"].mode == "P"
    assert (np.asarray(drawn.predictions["a"]) == 1).all()  # a label map that programs can read


def test_one_channel_is_drawn_as_the_label_it_decides():
    logit = torch.tensor([-1.0, 2.0]).expand(1, 4, 2).repeat_interleave(3, dim=2)
    drawn = draw({"a": Always(logit)}, IMAGE, IMAGE, None, config.Segmentation(name="segmentation"))
    assert np.asarray(drawn.predictions["a"])[0].tolist() == [0, 0, 0, 1, 1, 1]


def test_depth_is_drawn_in_the_truth_s_range_and_flow_by_its_direction():
    truth = torch.linspace(2, 4, 24).view(1, 4, 6)
    drawn = draw(
        {"a": Always(truth.clone())},
        (truth[:, ::2, ::2], IMAGE),
        (truth[:, ::2, ::2], IMAGE),
        truth,
        config.Depth(name="depth"),
    )
    assert [caption for caption, _ in drawn.panels] == ["input", "input", "truth", "a"]
    assert (drawn.panels[2][1] == drawn.panels[3][1]).all()
    assert drawn.panels[3][1][-1, -1].tolist() == [0xFD, 0xE7, 0x25]
    flow = torch.zeros(2, 4, 6)
    flow[0, :2], flow[0, 2:] = 1.0, -1.0
    right, left = np.asarray(draw({"a": Always(flow)}, IMAGE, IMAGE, None, config.Flow(name="flow")).panels[1][1])[
        [0, 3], 0
    ].astype(int)
    assert right[0] > right[2] + 100  # red
    assert left[2] > left[0] + 100  # blue


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "swapped.safetensors"
    hotswap.save(
        hotswap.convert(Small(), "second", "input", guide_scale=2.0, example_inputs=torch.rand(1, 3, 8, 8)), path
    )
    return path


def test_a_swapped_network_is_drawn_beside_its_plain_self_on_a_folder_of_images(tmp_path, checkpoint):
    (tmp_path / "photos").mkdir()
    for name, size in (("a", (16, 8)), ("b", (8, 12))):
        Image.new("RGB", size, (200, 10, 10)).save(tmp_path / "photos" / f"{name}.png")
    model = {"name": "tiny_recipe:Small", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    options = ["--checkpoint", checkpoint, "--images", tmp_path / "photos", "--output-dir", tmp_path / "out"]
    done = invoke("predict", written(tmp_path, model=model), *options)
    assert done.exit_code == 0, done.output
    names = {"a.png", "a_prediction.png", "b.png", "b_prediction.png"}
    assert {f.name for f in (tmp_path / "out").iterdir()} == names
    with Image.open(tmp_path / "out" / "a_prediction.png") as labels:
        assert (labels.mode, labels.size) == ("P", (16, 8))
    with Image.open(tmp_path / "out" / "a.png") as page:
        assert page.width > 3 * 400  # input, plain, swapped


def test_images_of_one_name_get_a_page_each_and_the_json_lists_them(tmp_path, checkpoint):
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "a.jpg", "b.png"):
        Image.new("RGB", (8, 8), (200, 10, 10)).save(tmp_path / "photos" / name)
    options = ["--checkpoint", checkpoint, "--images", tmp_path / "photos", "--output-dir", tmp_path / "out"]
    done = invoke("predict", written(tmp_path), *options, "--json", "--quiet")
    assert done.exit_code == 0, done.output
    names = [f"{name}{end}.png" for name in ("a.jpg", "a.png", "b") for end in ("", "_prediction")]
    assert json.loads(done.stdout) == {"files": [str(tmp_path / "out" / name) for name in names]}
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == sorted(names)


def test_pages_do_not_replace_the_images(tmp_path, checkpoint):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    before = (tmp_path / "photos" / "a.png").read_bytes()
    (tmp_path / "link").symlink_to("photos")
    options = ["--checkpoint", checkpoint, "--images", tmp_path / "photos", "--output-dir", tmp_path / "link"]
    done = invoke("predict", written(tmp_path), *options)
    assert (done.exit_code, "pages would replace images" in done.stderr) == (1, True)
    assert (tmp_path / "photos" / "a.png").read_bytes() == before


def test_without_images_the_validation_data_is_drawn(tmp_path, checkpoint):
    options = ["--checkpoint", checkpoint, "--limit", 2, "--output-dir", tmp_path / "out"]
    assert invoke("predict", written(tmp_path), *options).exit_code == 0
    assert len(list((tmp_path / "out").iterdir())) == 4


class Pairs(Dataset):
    """Inputs of two tensors."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return (torch.zeros(1, 4, 4), torch.zeros(3, 8, 8)), torch.zeros(1, 8, 8)


def test_images_are_refused_where_a_network_takes_more(tmp_path, checkpoint):
    data = {"train": {"name": "test_predict:Pairs"}, "validation": {"name": "test_predict:Pairs"}}
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    options = ["--checkpoint", checkpoint, "--images", tmp_path / "photos", "--output-dir", tmp_path / "out"]
    done = invoke("predict", written(tmp_path, data=data), *options)
    assert done.exit_code == 1
    assert "takes more than an image; leave out --images" in done.stderr
