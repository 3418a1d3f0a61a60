"""What goes wrong on the command line is one line, and writes nothing."""

import json
import os
from pathlib import Path

import networks
import pytest
import torch
from command_line import NET, SWAP, error_of, run

import hotswap
from hotswap.checkpoint.read import read
from hotswap.measure import verify

CONVERT = ("convert", NET, "--weights", "w.pth", *SWAP, "-o", "out.pt")
VERIFY = ("verify", "swapped.safetensors", "--model", NET, "--input-size", "8")


def changed(command, **options):
    """The command with other values: `weights=` for --weights, `model=` for its argument, None to leave one out."""
    command = list(command)
    for name, value in options.items():
        if name == "argument":
            command[1] = value
            continue
        flag = "-o" if name == "o" else f"--{name.replace('_', '-')}"
        if flag in command:
            at = command.index(flag)
            del command[at : at + 2]
        if value is not None:
            command += [flag, value]
    return command


REFUSED = [
    (changed(CONVERT, argument="vgg16"), "must be torchvision:NAME"),
    (changed(CONVERT, argument="torchvision:vgg61"), "closest: vgg"),
    (changed(CONVERT, argument="networks:Plian"), "closest: Plain"),
    (changed(CONVERT, argument="networks:conv?k=x"), "could not be built"),
    (changed(CONVERT, argument="no_such_module:make"), "there is no module 'no_such_module'"),
    (changed(CONVERT, argument="torchvision:squeezenet1_1"), "is this the right architecture?"),
    (changed(CONVERT, argument="networks:Containers"), "is this the right architecture?"),
    (changed(CONVERT, weights="nowhere.pth"), "cannot read 'nowhere.pth': No such file"),
    (changed(CONVERT, weights="photos"), "it is a folder"),
    (changed(CONVERT, weights="photos/0.png"), "neither a safetensors file nor"),
    (changed(CONVERT, weights="evil.pth"), "could run code"),
    (changed(CONVERT, weights="cut.pth"), "damaged"),
    (changed(CONVERT, weights="swapped.safetensors"), "holds a swapped network already"),
    (changed(CONVERT, o="nowhere/out.pt"), "there is no folder"),
    (changed(CONVERT, o="w.pth/out.pt"), "is not a folder"),
    (changed(CONVERT, o="photos"), "must end in .safetensors or .pt"),
    (changed(CONVERT, o="out.onnx"), "must end in .safetensors or .pt"),
    (changed(CONVERT, o="w.pth"), "is also an input"),
    (changed(CONVERT, o="link.pth"), "it is a link to 'w.pth'"),
    (changed(CONVERT, o="hard.pth"), "is also an input"),
    (changed(CONVERT, target="tarjet"), "closest: target"),
    (changed(CONVERT, guide="head"), "guide 'head' is computed after"),
    (changed(CONVERT, kernel="inv_1_1"), "use 'inv_1_1_fixed'"),
    (changed(CONVERT, calibrate_on="nowhere"), "cannot read images from 'nowhere'"),
    (changed(CONVERT, calibrate_on="photos", input_size="4x8x8"), "could not be run on fake inputs [1, 4, 8, 8]"),
    (changed(CONVERT, target=None, guide=None, plan="nowhere.json"), "No such file"),
    (changed(CONVERT, target=None, guide=None, plan="w.pth"), "must hold a plan as JSON"),
    (changed(CONVERT, target=None, guide=None, plan="other.json"), "the plan was made for another network"),
    (("inspect", NET, "--input-size", "1x16x16"), "could not be run on fake inputs [1, 1, 16, 16]"),
    (changed(VERIFY, argument="w.pth"), "nothing in this network is swapped"),
    (changed(VERIFY, model=None), "does not say which network its weights belong to"),
    (changed(VERIFY, model="networks:Containers"), "target 'target' is no module"),
    (changed(VERIFY, input_size="4x8x8"), "could not be run on fake inputs [1, 4, 8, 8]"),
    (changed(VERIFY, images="nowhere"), "cannot read images from 'nowhere'"),
    (changed(VERIFY, images="w.pth"), "Not a directory"),
    (changed(VERIFY, images="empty"), "there is no image in 'empty'"),
    (changed(VERIFY, images="photos", mean="1,2"), "mean must be one number or 3"),
    (("calibrate", *VERIFY[1:], "--images", "photos", "-o", "swapped.safetensors"), "is also an input"),
    (("calibrate", *VERIFY[1:], "--images", "photos", "-o", "nowhere/x.pt"), "there is no folder"),
    (("revert", "w.pth", "-o", "out.pt"), "nothing in 'w.pth' is swapped"),
    (("revert", "swapped.safetensors", "-o", "swapped.safetensors"), "is also an input"),
]


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(("command", "reason"), REFUSED, ids=[f"{c[0]}-{r[:25]}" for c, r in REFUSED])
def test_a_users_mistake_is_one_line_and_writes_nothing(swapped, command, reason):
    torch.save({"state_dict": networks.Plain().state_dict(), "x": Evil()}, "evil.pth")
    Path("cut.pth").write_bytes(Path("w.pth").read_bytes()[:-200])
    Path("link.pth").symlink_to("w.pth")
    Path("hard.pth").hardlink_to("w.pth")
    Path("other.json").write_text(json.dumps(hotswap.plan(networks.Plain(c_out=4), "target", "guide").to_dict()))
    Path("empty").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
    assert reason in error_of(run(*command, code=1))
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before


def test_text_from_a_file_cannot_steer_the_terminal(here):
    torch.save({"a\x1b[2J\nb": torch.ones(1)}, "w.pth")
    line = error_of(run(*CONVERT, code=1))
    assert "\x1b" not in line


def test_an_error_of_ours_is_not_hidden(swapped, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr(verify, "verify", fail)
    with pytest.raises(ZeroDivisionError):
        run(*VERIFY)


def test_a_name_that_a_file_may_not_hold_is_left_out_and_said(here, monkeypatch):
    monkeypatch.setattr("timm.create_model", lambda name, **options: networks.Plain())
    result = run(*changed(CONVERT, argument="timm:local-dir:somewhere"))
    assert "the file will not name its network" in result.stderr
    assert read("out.pt").metadata.architecture is None
