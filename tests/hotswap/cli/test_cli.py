"""The command line: the chain from a plain network to a swapped one and back, and a process of its own."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import networks
import pytest
import torch
from command_line import NET, ROOT, SWAP, run, same

import hotswap
from hotswap.checkpoint.metadata import Metadata
from hotswap.checkpoint.read import read, read_plan
from hotswap.checkpoint.write import write
from hotswap.cli import main
from hotswap.measure.calibrate import CONVOLUTION_DEVIATION, RESIZE_DEVIATION
from hotswap.zoo import providers

# --- the chain ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("one", "other"), [(".safetensors", ".pt"), (".pth", ".safetensors")])
def test_convert_verify_calibrate_revert(here, one, other):
    args = ("--model", NET, "--images", "photos", "--input-size", "24x32")
    converted = run("convert", NET, "--weights", "w.pth", *SWAP, "-o", f"s{one}")
    assert "conv1_2 (guide)" in converted.stdout
    assert "took the prefix 'module.' off all names" in converted.stderr
    assert f"wrote s{one}" in converted.stderr
    verified = run("verify", f"s{one}", *args)
    assert "inert" in verified.stdout
    assert "compared on 5 images from photos" in verified.stderr
    calibrated = run("calibrate", f"s{one}", *args, "--deviation", "0.2", "-o", f"c{other}", "--json")
    assert json.loads(calibrated.stdout)["targets"][0]["deviation"] == pytest.approx(0.2)
    again = json.loads(run("verify", f"c{other}", *args, "--json").stdout)
    assert again["targets"][0]["deviation"] == pytest.approx(0.2, abs=1e-6)
    assert again["warnings"] == []
    assert "target" in run("revert", f"c{other}", "-o", f"p{one}").stdout

    weights = {k.removeprefix("module."): x for k, x in torch.load("w.pth")["state_dict"].items()}
    for name in (f"s{one}", f"c{other}", f"p{one}"):
        assert same(read(name).state_dict, weights)
    assert read(f"p{one}").metadata.plan is None
    assert run("revert", f"p{one}", "-o", "x.pt", code=1).stderr.startswith("Error: nothing in")
    assert sorted(p.name for p in here.iterdir()) == sorted([f"s{one}", f"c{other}", f"p{one}", "w.pth", "photos"])


def test_guided_enlargements_are_reverted_by_name(here):
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.Upsample(scale_factor=2, mode="bilinear"))
    hotswap.save(hotswap.convert(net, "resize_*", "input"), "s.pt")
    assert "reverted 1 swaps: 1" in run("revert", "s.pt", "-o", "p.pt").stdout
    assert json.loads(run("revert", "s.pt", "-o", "q.pt", "--json").stdout)["targets"] == ["1"]


@pytest.mark.parametrize("spec", ["torchvision:mobilenet_v3_small?num_classes=3", "timm:test_resnet?num_classes=3"])
def test_a_network_of_the_zoo_needs_no_model(here, spec):
    model = providers.build(spec, trusted=True)
    torch.save(model.state_dict(), "zoo.pth")
    run("convert", spec, "--weights", "zoo.pth", "-o", "s.pt")
    result = json.loads(run("verify", "s.pt", "--input-size", "64", "--json").stdout)
    assert result["data"] == "random noise (seed 0)"
    assert result["output_relative"] < 1e-3
    run("revert", "s.pt", "-o", "p.pt")
    assert same(hotswap.load("p.pt").state_dict(), model.state_dict())


def test_half_precision_stays(here):
    torch.save(networks.Plain().half().state_dict(), "half.pth")
    run("convert", NET, "--weights", "half.pth", *SWAP, "--learn-scale", "-o", "s.pt")
    run("calibrate", "s.pt", "--model", NET, "--images", "photos", "--input-size", "16", "-o", "c.pt")
    found = read("c.pt")
    assert {x.dtype for x in found.state_dict.values()} == {torch.float16}
    assert found.metadata.learned_scales["target.guide_log_scale"] > -5


def test_a_plan_can_be_replayed(here):
    run("plan", NET, *SWAP, "--guide-scale", "0.5", "--resize", "nearest", "--learn-scale")
    printed = run("plan", NET, *SWAP, "--guide-scale", "0.5", "--resize", "nearest", "--gate", "2", "--json").stdout
    Path("plan.json").write_text(printed)
    direct = ("--guide-scale", "0.5", "--resize", "nearest", "--gate", "2", *SWAP)
    run("convert", NET, "--weights", "w.pth", *direct, "-o", "a.pt")
    run("convert", NET, "--weights", "w.pth", "--plan", "plan.json", "-o", "b.pt")
    assert Path("a.pt").read_bytes() == Path("b.pt").read_bytes()
    assert read("a.pt").metadata.plan == read_plan("plan.json")


@pytest.mark.parametrize("conserve", [None, "window", "none"])
def test_convert_calibrates_in_one_go(here, conserve):
    size = ("--input-size", "24x32")
    how = ("--deviation", "0.2", *(() if conserve is None else ("--conserve", conserve)))
    convert = ("convert", NET, "--weights", "w.pth", *SWAP, "--guide", "input", *size)
    run(*convert, "-o", "s.pt")
    run("calibrate", "s.pt", "--model", NET, *size, "--images", "photos", *how, "-o", "c.pt")
    once = run(*convert, "--guide-scale", "auto", "--calibrate-on", "photos", *how, "-o", "once.pt")
    assert "drift (relative RMS change of the outputs)" in once.stdout
    plan = read("once.pt").metadata.plan
    assert plan == read("c.pt").metadata.plan
    (swap,) = plan.swaps
    assert swap.guide == ("guide", "input")
    assert swap.conserve == {None: "mean", "window": "window", "none": None}[conserve]
    assert swap.deviation == pytest.approx(0.2)


def test_a_network_of_one_size(here):
    """Every command looks at it with an image of the size that was named, or with the images it has."""
    torch.save(networks.OfOneSize().state_dict(), "one.pth")
    net, size = "networks:OfOneSize", ("--input-size", "24x32")
    swap = ("--target", "resize_*", "--guide", "input", "--target", "target")
    convert = ("convert", net, "--weights", "one.pth", *swap, *size)
    result = run(*convert, "--calibrate-on", "photos", "-o", "s.pt")
    assert "not checked by a run" not in result.stdout
    assert "not compared" not in result.stdout
    run("plan", net, *swap, *size)
    run("verify", "s.pt", "--model", net, *size, "--images", "photos")
    run("calibrate", "s.pt", "--model", net, *size, "--images", "photos", "-o", "c.pt")


def test_no_check_leaves_the_comparison_out(here, monkeypatch):
    compared = []
    monkeypatch.setattr("hotswap.api.SelfCheck.compare", lambda *_: compared.append(1))
    convert = ("convert", NET, "--weights", "w.pth", *SWAP, "--input-size", "24x32")
    run(*convert, "--no-check", "-o", "a.pt")
    run(*convert, "--no-check", "--calibrate-on", "photos", "-o", "b.pt")
    run("plan", NET, *SWAP, "--no-check")
    assert not compared
    run(*convert, "-o", "c.pt")
    assert len(compared) == 1


def test_dry_run_is_plan_and_writes_nothing(here):
    before = sorted(here.rglob("*"))
    for extra in ((), ("--json",)):
        plan = run("plan", NET, *SWAP, *extra).stdout
        assert run("convert", NET, *SWAP, "--dry-run", *extra).stdout == plan
        assert run("convert", NET, *SWAP, "--dry-run", "--weights", "w.pth", "-o", "s.pt", *extra).stdout == plan
    assert sorted(here.rglob("*")) == before


def test_pretrained_weights_need_no_file(here, monkeypatch):
    """With `?weights=`, and what is recorded does not ask for them again."""
    monkeypatch.setattr(
        "torchvision.models._api.load_state_dict_from_url",
        lambda *a, **k: providers.build("torchvision:squeezenet1_1", trusted=True).state_dict(),
    )
    run("convert", "torchvision:squeezenet1_1?weights=DEFAULT", "-o", "s.pt")
    assert read("s.pt").metadata.architecture == "torchvision:squeezenet1_1"


JSON_COMMANDS = [
    ("inspect", NET),
    ("plan", NET, *SWAP),
    ("convert", NET, "--weights", "w.pth", *SWAP, "-o", "out.pt"),
    ("convert", NET, *SWAP, "--dry-run"),
    ("verify", "swapped.safetensors", "--model", NET, "--input-size", "16"),
    ("calibrate", "swapped.safetensors", "--model", NET, "--images", "photos", "--input-size", "16", "-o", "out.pt"),
    ("revert", "swapped.safetensors", "-o", "out.pt"),
]


@pytest.mark.parametrize("command", JSON_COMMANDS, ids=[c[0] for c in JSON_COMMANDS])
def test_json_is_all_there_is_on_stdout(swapped, command):
    result = json.loads(run(*command, "--json").stdout)
    assert isinstance(result, dict)
    assert result.get("output", "out.pt") == "out.pt"
    human = run(*command).stdout
    assert human.strip()
    assert "{" not in human


# --- a real process -------------------------------------------------------------------------------------------------

START = [sys.executable, "-c", "from hotswap.cli import main; main(prog_name='hotswap')"]


def process(*args, cwd, **kwargs):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [*START, *args], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


SLOW_NETS = """
import sys, time
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    def forward(self, x):
        return self.b(self.a(x).relu())
class Slow(Net):
    def __init__(self):
        super().__init__()
        print("building", file=sys.stderr, flush=True)
        time.sleep(60)
"""


def hotswap_in_a_process(*words):
    main(list(words), prog_name="hotswap")


def test_a_factory_in_the_current_folder_and_ctrl_c(tmp_path):
    (tmp_path / "slownets.py").write_text(SLOW_NETS)
    slow = process("plan", "slownets:Slow", cwd=tmp_path)
    assert slow.stderr.readline() == "building\n"
    slow.send_signal(signal.SIGINT)
    out, errors = slow.communicate(timeout=30)
    assert (out, errors.strip(), slow.returncode) == ("", "Aborted!", 1)
    status, out, errors = forks.run(
        hotswap_in_a_process, "plan", "slownets:Net", "--target", "b", "--guide", "a", folder=tmp_path
    )
    assert (errors, status) == ("", 0)
    assert "conv1_2" in out


def write_and_wait(target, written):
    save = torch.save

    def slow(content, stream):
        save(content, stream)
        stream.flush()
        written.send("written")
        time.sleep(60)

    torch.save = slow
    write({"a": torch.ones(9)}, target, Metadata())


def test_kill_9_while_writing_leaves_the_old_file(tmp_path):
    target = tmp_path / "m.pt"
    target.write_text("old")
    writing, sending = multiprocessing.Pipe(duplex=False)
    writer = forks.start(write_and_wait, target, sending)
    assert writing.poll(60)
    writer.kill()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert target.read_text() == "old"


def test_help_states_the_librarys_defaults():
    for command in ("calibrate", "convert"):
        text = " ".join(run(command, "--help").stdout.split())
        assert f"Default: {CONVOLUTION_DEVIATION} for convolutions, {RESIZE_DEVIATION} for enlargements." in text
