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
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import hotswap
from hotswap.checkpoint.metadata import Metadata
from hotswap.checkpoint.read import read, read_plan
from hotswap.checkpoint.write import write
from hotswap.cli import main
from hotswap.errors import HotswapError
from hotswap.measure import verify
from hotswap.measure.calibrate import CONVOLUTION_DEVIATION, RESIZE_DEVIATION
from hotswap.zoo import images, providers

ROOT = Path(__file__).parents[3]
NET = "networks:Plain"
SWAP = ("--target", "target", "--guide", "guide")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, but for weights and photographs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(networks.__file__).parent))
    torch.manual_seed(5)
    torch.save({"state_dict": {f"module.{k}": x for k, x in networks.Plain().state_dict().items()}}, "w.pth")
    chance = np.random.default_rng(0)
    Path("photos").mkdir()
    for index in range(5):
        Image.fromarray(chance.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(f"photos/{index}.png")
    return tmp_path


@pytest.fixture
def swapped(here):
    hotswap.save(hotswap.convert(networks.Plain(), "target", "guide"), "swapped.safetensors")
    return "swapped.safetensors"


def run(*args, code=0):
    """Run a command in this process; a traceback fails the test."""
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def error_of(result):
    """The one line that an error is."""
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


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
    hotswap.save(hotswap.convert(net, "resize", "input"), "s.pt")
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
    printed = run("plan", NET, *SWAP, "--guide-scale", "0.5", "--resize", "nearest", "--json").stdout
    Path("plan.json").write_text(printed)
    direct = ("--guide-scale", "0.5", "--resize", "nearest", *SWAP)
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
    swap = ("--target", "resize", "--guide", "input", "--target", "target")
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


# --- data -------------------------------------------------------------------------------------------------------


def seen_by_network(monkeypatch):
    seen = []
    monkeypatch.setattr(verify, "verify", lambda model, batches: seen.extend(batches) or STILL)
    return seen


STILL = hotswap.Verification(0.0, 0.0, True, ())


def test_images_are_sized_and_normalised(swapped, monkeypatch):
    seen = seen_by_network(monkeypatch)
    Image.new("RGB", (9, 9), (255, 0, 51)).save("photos/0.png")
    Image.new("L", (9, 9), 51).save("photos/1.PNG")
    Path("photos/.hidden.png").write_text("no image")
    Path("photos/notes.txt").write_text("no image")
    base = ("verify", swapped, "--model", NET, "--images", "photos", "--input-size", "8x6")
    run(*base)
    assert [x.shape for x in seen] == [(4, 3, 8, 6), (2, 3, 8, 6)]
    mean, std = (torch.tensor(x) for x in (providers.IMAGENET_MEAN, providers.IMAGENET_STD))
    torch.testing.assert_close(seen[0][0, :, 2, 3], (torch.tensor([1, 0, 0.2]) - mean) / std)
    seen.clear()
    run(*base, "--mean", "0", "--std", "0.00392156862", "--limit", "3")
    assert [x.shape[0] for x in seen] == [3]
    torch.testing.assert_close(seen[0][0, :, 2, 3], torch.tensor([255.0, 0, 51]))
    seen.clear()
    run(*base, "--mean", "0.1,0.2,0.3", "--std", "1,2,4")
    torch.testing.assert_close(seen[0][1, :, 2, 3], torch.tensor([0.1, 0, -0.025]))


def test_noise_is_always_the_same_and_said(swapped, monkeypatch):
    seen = seen_by_network(monkeypatch)
    for _ in range(2):
        result = run("verify", swapped, "--model", NET, "--input-size", "8")
    assert "random noise" in result.stderr
    assert torch.equal(torch.stack(seen[:2]), torch.stack(seen[2:]))


def test_a_rotated_photograph_is_read_upright(tmp_path):
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "x.png", exif=exif)
    (batch,) = images.batches([tmp_path / "x.png"], images.Form((3, 2, 4), (0,), (1,), torch.float32), 4)
    assert batch[0, 0].argmax() == 7


def test_an_image_is_read_whole_only_where_that_fits_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "_MOST_PIXELS", 11)
    Image.new("RGB", (4, 3), (255, 0, 51)).save(tmp_path / "x.png")
    with pytest.raises(
        HotswapError, match=r"x\.png' has 4 x 3 pixels, and can have at most 0 million; make it smaller"
    ):
        images.read(tmp_path / "x.png")
    assert images.read(tmp_path / "x.png", size=(2, 2))[:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])


def test_pillow_logs_nothing_beside_the_one_line(tmp_path, caplog):
    Image.new("RGB", (4, 3)).save(tmp_path / "x.tif")
    three_samples, many = (b"\x15\x01\x03\0\x01\0\0\0" + n for n in (b"\x03\0", b"\0\x08"))
    content = (tmp_path / "x.tif").read_bytes()
    assert content.count(three_samples) == 1
    (tmp_path / "x.tif").write_bytes(content.replace(three_samples, many))
    with pytest.raises(HotswapError, match="cannot identify image file"):
        images.read(tmp_path / "x.tif")
    assert caplog.text == ""
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(tmp_path / "x.tif")
    assert "More samples per pixel" in caplog.text  # others' reading is as it was


BAD_IMAGES = [
    ("broken.png", b"\x89PNG\r\n\x1a\nno", "broken.png"),
    ("cut.jpg", None, "cut.jpg"),
    ("deep.tif", None, "deep.tif' has more than 8 bits"),
    ("program.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "cannot identify image file"),
]


@pytest.mark.parametrize(("name", "content", "reason"), BAD_IMAGES)
def test_a_bad_image_is_named(swapped, name, content, reason):
    if content is None and name.startswith("deep"):
        Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(f"photos/{name}")
    elif content is None:
        Image.effect_noise((64, 64), 50).save(f"photos/{name}")
        Path(f"photos/{name}").write_bytes(Path(f"photos/{name}").read_bytes()[:900])
    else:
        Path(f"photos/{name}").write_bytes(content)
    arguments = (swapped, "--model", NET, "--images", "photos", "--input-size", "8")
    assert reason in error_of(run("verify", *arguments, code=1))
    assert reason in error_of(run("calibrate", *arguments, "-o", "out.pt", code=1))
    assert not Path("out.pt").exists()


# --- what goes wrong ----------------------------------------------------------------------------------------------

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
