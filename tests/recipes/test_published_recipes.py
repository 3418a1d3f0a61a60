"""The recipes of the paper's experiments, and of newer networks: they are valid, and one of each kind runs."""

import math
from pathlib import Path

import pytest
import torch
from tiny_datasets import LISTS, nyu, sintel, voc

import recipes
from recipes import building, engine, reading
from recipes.config import Recipe
from recipes.networks.segmentation import fcn8s

JOINT = [
    f"joint_{kind}_{net}_x{f}" for kind in ("depth", "flow") for net in ("djf", "pac", "pac_lite") for f in (4, 8, 16)
]
CRF = ["fcn8s_paccrf", "fcn8s_paccrf32", "pacfcn_paccrf"]
MODERN = ["deeplabv3_resnet50", "smp_unet", "segformer"]
SEGMENTATION = ["fcn8s", "pacfcn", *CRF, *MODERN]
PAPERS = {f"{block}_3" for block in ("conv3", "conv4", "conv5")}


@pytest.fixture(scope="module")
def arms() -> dict[str, dict[str, Recipe]]:
    return {name: reading.read(name) for name in (*JOINT, *SEGMENTATION)}


def test_all_that_come_along_are_known_here():
    found = {path.stem for path in Path(recipes.__path__[0]).glob("*.yaml")}
    assert found == {*JOINT, *SEGMENTATION, "quickstart"}


@pytest.mark.parametrize("name", SEGMENTATION)
def test_segmentation_is_on_voc_with_sbd(arms, name):
    for recipe in arms[name].values():
        train, validation = recipe.data.train, recipe.data.validation
        assert (train.name, validation.name) == ("voc", "voc")
        assert (train.options["split"], validation.options["split"]) == ("train11", "val11_sbd")
        # U-Net takes multiples of 32 only.
        assert train.options["crop"] == (448 if name == "smp_unet" else 449)
        assert train.options["flip"]
        assert recipe.task.ignore == 255
        assert building.protocol(recipe) == (None if name == "smp_unet" and recipe.model.mean is None else "imagenet")


@pytest.mark.parametrize("name", CRF)
def test_crfs_train_in_the_papers_two_stages(arms, name):
    assert list(arms[name]) == ["crf", "joint"]
    alone, joint = arms[name].values()
    assert (alone.freeze, alone.epochs, alone.optimiser.name, alone.optimiser.lr) == (("backbone",), 40, "adam", 1e-3)
    assert (alone.schedule.name, alone.schedule.at) == ("step", (20,))
    assert (joint.freeze, joint.optimiser.lr, joint.model.checkpoint) == ((), 1e-7, "arm:crf")
    assert tuple(alone.model.options["std"]) == building.normalisation(alone)[1]
    assert alone.model.options["dilations"] == ([32] if name == "fcn8s_paccrf32" else [16, 64])
    swapped = {target for swap in alone.swaps for target in swap.targets}
    assert swapped == ({f"backbone.{x}" for x in PAPERS} if name == "pacfcn_paccrf" else set())
    assert joint.swaps == ()  # those of the checkpoint


def test_pacfcn_is_the_papers_swap_and_has_its_control(arms):
    plain, swapped = arms["pacfcn"].values()
    (swap,) = swapped.swaps
    assert (set(swap.targets), swap.guide, swap.guide_scale, swap.after_activation) == (PAPERS, "conv2_2", 1e-4, True)
    assert swapped.calibration is None
    assert plain == swapped.model_copy(update={"swaps": ()})


@pytest.mark.parametrize("name", MODERN)
def test_newer_networks_have_their_plain_control_at_equal_budget(arms, name):
    plain = arms[name]["plain"]
    assert plain.swaps == ()
    for arm in arms[name].keys() - {"plain", "start"}:
        assert arms[name][arm].swaps
        assert plain == arms[name][arm].model_copy(update={"swaps": (), "calibration": None})


@pytest.mark.parametrize("name", JOINT)
def test_joint_upsampling_is_trained_as_published(arms, name):
    (recipe,) = arms[name].values()
    factor = int(name.rsplit("x", 1)[1])
    for data in (recipe.data.train, recipe.data.validation):
        assert data.options["factor"] == factor
    assert recipe.data.train.options["crop"] == 256
    assert "crop" not in recipe.data.validation.options
    assert (recipe.optimiser.name, recipe.optimiser.lr, recipe.epochs) == ("adam", 1e-4, 5000)
    assert (recipe.schedule.name, recipe.schedule.at) == ("step", (3500, 4500))
    assert building.protocol(recipe) == recipe.protocol == "published"
    assert recipe.model.options == (
        {"enlarge": "bilinear"} if "djf" in name else {"factor": factor} | ({"lite": True} if "lite" in name else {})
    )
    assert getattr(recipe.task, "border", 6) == 6


# --- two steps of each kind on tiny data ------------------------------------------------------------------


def run(name: str, folder: Path, *changes: str, without: str | None = None) -> dict[str, dict]:
    chosen = reading.read(name, ["workers=0", "batch_size=2", "evaluation={at_start: false}", *changes])
    results = engine.finetune({arm: chosen[arm] for arm in chosen if arm != without}, folder / name, max_steps=2)
    for arm, result in results.items():
        assert result["steps"] == 2, arm
        assert all(math.isfinite(value) for value in result["metrics"].values()), arm
        assert (folder / name / arm / "last.safetensors").is_file()
    return results


@pytest.fixture(scope="module")
def voc_root(tmp_path_factory) -> list[str]:
    root = voc(tmp_path_factory.mktemp("voc"), LISTS, (40, 36))
    return [f"data.{part}.options.root={root}" for part in ("train", "validation")]


@pytest.fixture(scope="module")
def fcn8s_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("fcn8s") / "best.pth"
    torch.save(fcn8s(hidden=8).state_dict(), path)
    return path


def test_pacfcn_with_a_crf_runs_in_two_stages(tmp_path, voc_root, fcn8s_file):
    small = (f"model.options={{hidden: 8, backbone: {fcn8s_file}, dilations: [2, 4]}}", "data.train.options.crop=33")
    assert set(run("pacfcn_paccrf", tmp_path, *voc_root, *small)) == {"crf", "joint"}


def test_unet_runs(tmp_path, voc_root):
    small = (
        "model.options.encoder_name=resnet18",
        "model.options.encoder_weights=null",
        "data.train.options.crop=64",
    )
    assert set(run("smp_unet", tmp_path, *voc_root, *small, without="plain")) == {"start", "swapped"}


def test_segformer_runs(tmp_path, voc_root):
    small = ("model.options={}", "data.train.options.crop=64")
    assert set(run("segformer", tmp_path, *voc_root, *small, without="plain")) == {"start", "swapped"}


@pytest.mark.parametrize("name", ["joint_depth_pac_lite_x4", "joint_depth_djf_x8"])
def test_depth_runs(tmp_path, monkeypatch, name):
    monkeypatch.setattr("recipes.data.nyu.COUNT", 8)
    monkeypatch.setattr("recipes.data.nyu.TRAIN", 5)
    root = nyu(tmp_path, (24, 32), count=8)
    roots = [f"data.{part}.options.root={root}" for part in ("train", "validation")]
    assert "rmse" in run(name, tmp_path, *roots, "data.train.options.crop=16")[reading.ALONE]["metrics"]


def test_flow_runs(tmp_path):
    root = sintel(
        tmp_path, (20, 24), {"ambush_6": 1, "market_6": 1, "bamboo_2": 1, "cave_4": 1, "temple_2": 1, "a": 2}
    )
    roots = [f"data.{part}.options.root={root}" for part in ("train", "validation")]
    found = run("joint_flow_pac_lite_x4", tmp_path, *roots, "data.train.options.crop=16")
    assert "epe" in found[reading.ALONE]["metrics"]
