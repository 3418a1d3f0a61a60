"""What stands beside the tensors: nothing of it can do harm."""

import json

import networks
import pytest
import safetensors.torch
import torch
from saving import IMAGES, SUFFIXES, entry, one_line, plain_state, swapped

import hotswap
from hotswap.checkpoint.read import read, read_plan
from hotswap.errors import HotswapError


def without(*keys, **changes):
    content = json.loads(entry(**changes))
    return json.dumps({key: value for key, value in content.items() if key not in keys})


PLAN = hotswap.plan(networks.Plain(), "target", "guide").to_dict()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must be JSON"),
        ("{", "must be JSON"),
        ("[" * 100_000, "must be JSON"),
        ("[]", "is malformed"),
        ("7", "is malformed"),
        ("{}", "is malformed"),
        (entry(format_version=8), "newer hotswap (format 8, and this one reads up to 7); pip install --upgrade"),
        (entry(format_version=4), "is malformed"),
        (without("images"), "is malformed"),
        (without("config"), "is malformed"),
        (without("images", "config", "protocol", format_version=4), "is malformed"),
        (without("images", "protocol", format_version=3), "is malformed"),
        (entry(config=[]), "config must not be a list"),
        (entry(images=None), "images must not be a NoneType"),
        (entry(images={}), "images must say mean, std and size, got nothing"),
        (entry(images={"x": 1}), "images must say mean, std and size, got 'x'"),
        (entry(images=IMAGES | {"mean": [0.5]}), "images must be stated both or neither"),
        (entry(images=IMAGES | {"mean": [0.5], "std": [1, 1, 1]}), "must be as many, got 1 and 3"),
        (entry(images=IMAGES | {"mean": [], "std": []}), "the mean of images must be a number from"),
        (entry(images=IMAGES | {"mean": ["x"], "std": [1]}), "the mean of images must be a number from"),
        (entry(images=IMAGES | {"mean": [0], "std": [0]}), "the std of images must be a number from 1e-06"),
        (entry(images=IMAGES | {"mean": [0], "std": [1]}).replace("[1]", "[NaN]"), "the std of images must be"),
        (entry(images=IMAGES | {"mean": [0], "std": [1]}).replace("[1]", "[1e400]"), "the std of images must be"),
        (entry(images=IMAGES | {"size": 8}), "the size of images must be a list of numbers, got a int"),
        (entry(images=IMAGES | {"size": [8]}), "must be a height and a width of 1 to 2048 pixels, got [8]"),
        (entry(images=IMAGES | {"size": [8, 5000]}), "must be a height and a width of 1 to 2048 pixels"),
        (entry(images=IMAGES | {"size": [True, 8]}), "must be a height and a width of 1 to 2048 pixels"),
        (entry(protocol=3), "protocol must not be a int"),
        (entry(protocol="x" * 101), "the protocol of images must be text of at most 100 characters"),
        (entry(format_version=5), "is malformed"),
        (without("protocol"), "is malformed"),
        (entry(format_version=0), "is malformed"),
        (entry(format_version="1"), "is malformed"),
        (entry(more=1), "is malformed"),
        (entry(architecture=3), "architecture must not be a int"),
        (entry(architecture="os"), "must be torchvision:NAME"),
        (entry(plan=[]), "plan must not be a list"),
        (entry(plan={}), "the plan must have 'swaps'"),
        (entry(plan=PLAN | {"swaps": []}), "at least one swap"),
        (
            entry(plan={"swaps": [PLAN["swaps"][0] | {"guide_scale": -1}], "notes": []}),
            "guide_scale must be a number",
        ),
        (entry(plan={"swaps": [PLAN["swaps"][0] | {"guide_scale": "x" * 9999}], "notes": []}), "guide_scale must be"),
        (entry(plan=PLAN).replace("0.0001", "1" + "0" * 400), "a number of 401 digits"),
        (entry(plan=PLAN).replace("0.0001", "NaN"), "guide_scale must be a number"),
        (entry(learned_scales={"target.weight": [1.0, "float32"]}), "learned_scales must hold [number, dtype]"),
        (entry(learned_scales={"x.guide_log_scale": ["1", "float32"]}), "learned_scales must hold [number, dtype]"),
        (entry(learned_scales={"x.guide_log_scale": [1.0, "int8"]}), "learned_scales must hold [number, dtype]"),
        (entry(learned_scales={"x.guide_log_scale": [1.0, []]}), "learned_scales must hold [number, dtype]"),
        (entry(learned_scales={"x.guide_gate": ["AAAA", "float32", [1]]}), "learned_scales must hold"),
        (entry(learned_scales={"x.guide_gate": ["AACAfw==", "float32", [1]]}), "learned_scales must hold"),  # inf
        (entry(learned_scales={"x.guide_gate": ["AAAAAA==", "float32", [True]]}), "learned_scales must hold"),
        (entry(learned_scales={"x.guide_gate": ["AAAAAA==", "float32", []]}), "learned_scales must hold"),
        (entry(learned_scales={"x.guide_gate": ["AAAAA", "float32", [1]]}), "learned_scales must hold"),
        (entry(learned_scales={"x.guide_log_scale": 1.0}), "learned_scales must hold [number, dtype]"),
        (entry(learned_scales={"x.guide_log_scale": [2.0, "float32"]}).replace("2.0", "Infinity"), "learned_scales"),
    ],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_hostile_metadata_is_one_short_line(tmp_path, text, reason, suffix):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pt":
        torch.save({"state_dict": plain_state(), "hotswap": text}, path)
    else:
        safetensors.torch.save_file(dict(plain_state()), path, {"hotswap": text})
    with pytest.raises(HotswapError) as caught:
        read(path)
    assert reason in one_line(caught)
    assert str(path) in str(caught.value) or "network" in str(caught.value)
    assert len(str(caught.value)) < 800


def test_an_architecture_in_a_file_runs_nothing(tmp_path):
    torch.save(
        {"state_dict": plain_state(), "hotswap": entry(architecture=f'os:system?command="touch {tmp_path}/ran"')},
        tmp_path / "w.pt",
    )
    with pytest.raises(HotswapError, match="a file may not choose what code runs"):
        hotswap.load(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_read_plan(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN))
    assert read_plan(path) == hotswap.Plan.from_dict(PLAN)
    for content, reason in ((b"\xff\xfe", "is no text"), (b"{", "must be JSON"), (b"[]", "must be a mapping")):
        path.write_bytes(content)
        with pytest.raises(HotswapError, match=reason):
            read_plan(path)


def test_the_names_of_learned_scales_are_the_librarys():
    names = swapped(learn_scale=True).state_dict().keys() - networks.Plain().state_dict().keys()
    assert names == {"target.guide_log_scale"}
