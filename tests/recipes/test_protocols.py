"""How data are prepared, by name: on maps computed by hand, in recipes, and in checkpoints."""

import pytest
import torch
from tiny_datasets import LISTS, nyu, voc
from tiny_recipe import invoke, written
from torch import nn
from torch.utils.data import TensorDataset

import hotswap
from hotswap.checkpoint.read import read
from hotswap.errors import HotswapError
from hotswap.zoo import image_stats
from hotswap.zoo.image_stats import ImageStats
from recipes import building, engine, protocols, reading
from recipes.data import upsampling

GRID = torch.arange(64.0).view(1, 8, 8)  # of row r and column c: 8 r + c


@pytest.mark.parametrize(
    ("protocol", "factor", "pixels"),
    [
        ("published", 4, [[9, 13], [41, 45]]),  # rows and columns 1 and 5
        ("centre_pixel", 4, [[18, 22], [50, 54]]),  # 2 and 6
        ("published", 8, [[27]]),
        ("centre_pixel", 8, [[36]]),
        ("published", 2, [[0, 2, 4, 6], [16, 18, 20, 22], [32, 34, 36, 38], [48, 50, 52, 54]]),
    ],
)
def test_depth_by_hand(monkeypatch, protocol, factor, pixels):
    data = TensorDataset(torch.rand(1, 3, 8, 8), GRID[None])
    monkeypatch.setattr(upsampling, "NyuDepth", lambda *_, **__: data)
    (low, _), (target, unit) = upsampling.nyu(".", "test", factor, protocol=protocol)[0]
    chosen = torch.tensor(pixels, dtype=torch.float32)
    first, span = chosen.min(), max(float(chosen.max() - chosen.min()), 1.0)
    torch.testing.assert_close(low[0], (chosen - first) / span)
    torch.testing.assert_close(target[0], (GRID[0] - first) / span)
    assert unit == 100 * span  # centimetres


def flow(monkeypatch):
    """To the right 0, 1, 2, 3 in every row; down 1 everywhere."""
    right, down = torch.arange(4.0).expand(1, 4, 4), torch.ones(1, 4, 4)
    data = TensorDataset(torch.rand(1, 3, 4, 4), torch.cat((right, down))[None])
    monkeypatch.setattr(upsampling, "SintelFlow", lambda *_, **__: data)


def test_flow_by_hand_as_published(monkeypatch):
    """Halved with antialiasing, pixels at a distance of 0.5, 0.5 and 1.5 weigh 3, 3 and 1: 0, 1, 2, 3 become 5/7 and 16/7."""
    flow(monkeypatch)
    (low, _), (target, unit) = upsampling.sintel(".", "train", factor=2, protocol="published")[0]
    torch.testing.assert_close(unit, torch.tensor(11 / 7))
    torch.testing.assert_close(low, torch.tensor([[[0.0, 1.0]] * 2, [[2 / 11, 2 / 11]] * 2]))
    torch.testing.assert_close(target[0], torch.tensor([-5.0, 2, 9, 16]).expand(4, 4) / 11)
    torch.testing.assert_close(target[1], torch.full((4, 4), 2 / 11))


def test_flow_by_hand_in_pixels(monkeypatch):
    flow(monkeypatch)
    (low, _), (target, unit) = upsampling.sintel(".", "train", factor=2)[0]
    assert (low[0].tolist(), low[1].tolist(), float(unit)) == ([[0.5, 2.5]] * 2, [[1.0, 1.0]] * 2, 1.0)
    assert target[0, 2].tolist() == [0, 1, 2, 3]


def test_images_as_published():
    (recipe,) = reading.read("fcn8s", ["protocol=published"]).values()
    photo = torch.tensor([255.0, 128.0, 0.0])[:, None, None] / 255
    expected = torch.tensor([255 - 122.679, 128 - 116.669, -104.007])  # red, green, blue
    torch.testing.assert_close(building.normalised(recipe, photo).flatten(), expected)
    (usual,) = reading.read("fcn8s").values()
    assert building.normalisation(usual) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# --- in recipes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("joint_depth_pac_x4", "protocol=bilinear", "protocol of nyu must be one of centre_pixel, published, antial"),
        ("joint_flow_pac_x4", "protocol=centre_pixel", "protocol of sintel must be one of bilinear, published, got"),
        ("fcn8s", "protocol=centre_pixel", "protocol of voc must be one of imagenet, published, got 'centre_pixel'"),
        (
            "quickstart",
            "protocol=published",
            "protocol is of the data sets nyu, sintel, voc, and the data are scenes",
        ),
        (
            "segformer",
            "protocol=published",
            "protocol says mean and std of images; leave out model.mean and model.std",
        ),
        ("joint_flow_pac_x4", "data.train.options.protocol=published", "protocol is a key of the recipe"),
    ],
)
def test_those_that_a_recipe_cannot_have_are_refused(name, change, message):
    with pytest.raises(HotswapError, match=message):
        reading.read(name, [change])


@pytest.mark.parametrize(
    ("name", "change", "protocol"),
    [
        ("joint_depth_pac_x4", "protocol=null", "centre_pixel"),
        ("joint_flow_pac_x4", "protocol=null", "bilinear"),
        ("joint_depth_pac_x4", "seed=1", "published"),
        ("segformer", "seed=1", "imagenet"),  # by mean and std
        ("segformer", "model.mean=[0.0, 0.0, 0.0]", None),
        ("quickstart", "seed=1", None),
    ],
)
def test_of_a_recipe(name, change, protocol):
    *_, recipe = reading.read(name, [change]).values()
    assert building.protocol(recipe) == protocol


def test_every_one_can_be_made(tmp_path, monkeypatch):
    monkeypatch.setattr("recipes.data.nyu.COUNT", 8)
    monkeypatch.setattr("recipes.data.nyu.TRAIN", 5)
    root = nyu(tmp_path, (24, 32), count=8)
    lows = []
    for name in protocols.KNOWN["nyu"]:
        (recipe,) = reading.read("joint_depth_djf_x4", [f"protocol={name}"]).values()
        options = recipe.data.validation.options | {"root": str(root)}
        data = building.dataset(recipe.data.validation.model_copy(update={"options": options}), recipe.protocol)
        lows.append(data[0][0][0])
    assert len({tuple(low.flatten().tolist()) for low in lows}) == len(lows) == 3
    for name in protocols.KNOWN["voc"]:
        (recipe,) = reading.read("fcn8s", [f"protocol={name}"]).values()
        assert building.normalisation(recipe) is not None


# --- in checkpoints -------------------------------------------------------------------------------------------------


def test_stays_with_a_network_and_its_files(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1))
    image_stats.put(network, ImageStats(protocol="published"))
    swapped = hotswap.convert(network, ["1"], guide="0", example_inputs=torch.rand(1, 3, 8, 8))
    for suffix in (".safetensors", ".pt"):
        hotswap.save(swapped, tmp_path / f"a{suffix}")
        assert read(tmp_path / f"a{suffix}").metadata.images == ImageStats(protocol="published")
        loaded = hotswap.load(
            tmp_path / f"a{suffix}",
            nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)),
            example_inputs=torch.rand(1, 3, 8, 8),
        )
        assert image_stats.of(loaded).protocol == "published"
        assert image_stats.of(hotswap.revert(loaded)).protocol == "published"


def test_a_run_writes_it_and_the_next_says_where_it_is_another(tmp_path):
    root = voc(tmp_path / "voc", LISTS, (16, 16))
    data = {"name": "voc", "options": {"root": str(root), "split": "train11", "crop": 16}}
    path = written(
        tmp_path,
        model={"name": "tiny_recipe:Small", "options": {"classes": 21}},
        data={"train": data, "validation": data},
        protocol="imagenet",
        steps=1,
    )
    engine.finetune(reading.read(path), tmp_path / "run")
    checkpoint = tmp_path / "run" / "last.safetensors"
    assert read(checkpoint).metadata.images.protocol == "imagenet"
    assert invoke("evaluate", path, "--checkpoint", checkpoint).stderr == ""
    again = (
        "--set",
        "protocol=published",
        "--set",
        f"model.checkpoint={checkpoint}",
        "--set",
        "evaluation.at_start=false",
    )
    for command in (
        ("evaluate", path, "--checkpoint", checkpoint, "--set", "protocol=published"),
        (
            "predict",
            path,
            "--checkpoint",
            checkpoint,
            "--set",
            "protocol=published",
            "--output-dir",
            tmp_path / "out",
        ),
        ("finetune", path, *again, "--output-dir", tmp_path / "next"),
    ):
        done = invoke(*command)
        assert done.exit_code == 0, done.output
        told = [line for line in done.stderr.splitlines() if line.startswith("note:")]
        expected = (
            f"note: {str(checkpoint)!r} is of the protocol 'imagenet', and this recipe prepares its data by 'published': "
            "their figures must not be compared; --set protocol=imagenet is the checkpoint's"
        )
        assert told == [expected]
    assert read(tmp_path / "next" / "last.safetensors").metadata.images.protocol == "published"


def test_files_of_older_formats_have_none(tmp_path):
    import json

    from saving import entry, plain_state

    content = json.loads(entry(format_version=5))
    del content["protocol"]
    torch.save({"state_dict": plain_state(), "hotswap": json.dumps(content)}, tmp_path / "w.pt")
    assert read(tmp_path / "w.pt").metadata.images == ImageStats()
