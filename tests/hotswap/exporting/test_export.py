"""Files that run without hotswap: ONNX by onnxruntime, exported programs by torch alone."""

import json
import re
import subprocess
import sys

import networks
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

import hotswap
from hotswap.cli import main
from hotswap.exporting import export, sizes

SIZE = (1, 3, 32, 48)
SCALE = 0.5
HALVES = {torch.float16: 1e-3, torch.bfloat16: 8e-3}  # the roundings of a type, and what they do to these networks


class Segmenter(nn.Module):
    """Convolutions to swap, and enlargements to guide; two outputs."""

    def __init__(self):
        super().__init__()
        self.body = networks.Plain()
        self.score = nn.Conv2d(2, 4, 1)

    def forward(self, x):
        y = self.body(x)
        scores = F.interpolate(self.score(y), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return {"scores": scores, "coarse": y}


class Fixed(networks.Plain):
    """Its code takes the image's size for granted."""

    def forward(self, x):
        return super().forward(x) + torch.zeros(2, SIZE[2] // 2, SIZE[3] // 2)


def swapped(net=None, targets=("body.target", "resize_*"), guide=None, **options):
    guide = {"body.target": "body.guide", "resize_*": "input"} if guide is None else guide
    torch.manual_seed(0)
    net = Segmenter() if net is None else net
    options = {"guide_scale": SCALE, "example_inputs": torch.rand(SIZE)} | options
    return hotswap.convert(net.eval(), list(targets), guide, **options)


def test_onnx_of_open_sizes(tmp_path):
    net, path = swapped(), tmp_path / "net.onnx"
    result = hotswap.export(net, path, example_inputs=torch.rand(SIZE))
    assert result.inputs == (("batch", 3, "height", "width"),)
    assert result.tried[:5] == (
        (2, 3, 32, 48),
        (1, 3, 41, 59),
        (3, 3, 19, 31),
        (2, 3, 58, 19),
        (2, 3, 64, 64),
    )
    assert result.tried[5:] == ((1, 3, 3, 48), (1, 3, 32, 3))  # torch.export took 4 pixels for granted
    assert "tried at 2 x 3 x 32 x 48, 1 x 3 x 41 x 59, " in str(result)
    assert result.fixed == ""
    assert result.largest_difference < sizes.TOLERANCE
    assert result.bytes == path.stat().st_size
    assert {node.domain for node in onnx.load(path).graph.node} <= {"", "ai.onnx"}
    session = onnxruntime.InferenceSession(path)
    image = torch.rand(3, 3, 40, 56)
    found = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    for array, expected in zip(found, net(image).values(), strict=True):
        np.testing.assert_allclose(array, expected.detach().numpy(), rtol=1e-4, atol=1e-5)


LOAD = """
import sys
class Away:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("hotswap", "pac_ops"):
            raise ImportError(name)
sys.meta_path.insert(0, Away())
import torch
image, expected = torch.load(sys.argv[2])
found = torch.export.load(sys.argv[1]).module()(image)
torch.testing.assert_close(found["scores"], expected)
"""


def test_an_exported_program_runs_without_us_and_the_network_stays_as_it_was(tmp_path):
    net = swapped(footprint=2).train()
    state = {name: x.clone() for name, x in net.state_dict().items()}
    result = hotswap.export(net, tmp_path / "net.pt2", example_inputs=torch.rand(SIZE))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())
    assert result.inputs == (("batch", 3, "height", "width"),)
    image = torch.rand(3, 3, 40, 56)
    torch.save((image, net.eval()(image)["scores"].detach()), tmp_path / "data.pt")
    subprocess.run([sys.executable, "-c", LOAD, tmp_path / "net.pt2", tmp_path / "data.pt"], check=True)


def test_sizes_stay_open_where_a_strong_guide_tells_neighbours_apart(tmp_path):
    # At odd sizes some fine pixels lie on coarse ones; a place off by a rounding has another neighbour, whose weight of
    # nearly 0 a strong guide makes large.
    net, image = Segmenter().eval(), torch.rand(1, *SIZE[1:], generator=torch.Generator().manual_seed(0))
    converted = hotswap.convert(net, "resize", "input", guide_scale=30.0, footprint=2, calibrate_on=[image])
    result = hotswap.export(converted, tmp_path / "a.onnx", example_inputs=image)
    assert result.fixed == ""
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    other = torch.rand(1, 3, 41, 61, generator=torch.Generator().manual_seed(1))
    scores, _ = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(scores), converted(other)["scores"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_fixed_sizes_on_demand_and_where_the_code_has_them(tmp_path, suffix):
    net = swapped(targets=["body.target"], guide="body.guide")
    wanted = hotswap.export(net, tmp_path / f"a{suffix}", example_inputs=torch.rand(SIZE), dynamic=False)
    assert wanted.inputs == (SIZE,)
    assert wanted.tried == (SIZE,)
    fixed = swapped(Fixed(), ["target"], "guide")
    found = hotswap.export(fixed, tmp_path / f"b{suffix}", example_inputs=torch.rand(SIZE))
    assert found.inputs == (("batch", *SIZE[1:]),)  # said, not hidden
    assert "input batch x 3 x 32 x 48" in str(found)
    assert "fixed at the example's height, width: the network itself runs at too few other sizes" in str(found)


class Branching(nn.Module):
    """Computes something else at odd sizes, which torch.export does not see from an even one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x if x.shape[-1] % 2 else -x)


@pytest.mark.parametrize(
    ("suffix", "seen"),
    [
        (".onnx", "the file differs from PyTorch by .* at 1 x 3 x 41 x 59"),
        (".pt2", "the file (fails|differs from PyTorch by .*) at 1 x 3 x 41"),  # differs with torch 2.8
    ],
)
def test_a_file_keeps_open_only_what_it_is_right_at(tmp_path, capfd, suffix, seen):
    found = hotswap.export(Branching(), tmp_path / f"net{suffix}", example_inputs=torch.rand(SIZE))
    assert found.inputs == (("batch", *SIZE[1:]),)
    assert re.match(f"fixed at the example's height, width: with more left open, {seen}", found.fixed)
    assert "onnxruntime" not in capfd.readouterr().err


BRANCHES = {
    "below a size": (lambda x: x.shape[-1] > 7, "2 x 3 x 32 x 7|1 x 3 x 32 x 7"),
    "above a size": (lambda x: x.shape[-2] < 100, "1 x 3 x 100 x 48"),
    "of images that stand": (lambda x: x.shape[-1] >= x.shape[-2], "2 x 3 x 58 x 19"),
}


@pytest.mark.parametrize("kind", BRANCHES)
def test_a_branch_on_sizes_is_looked_for_where_the_exporter_saw_one(tmp_path, kind):
    branch, size = BRANCHES[kind]

    class Net(Branching):
        def forward(self, x):
            return self.conv(x if branch(x) else -x)

    found = hotswap.export(Net(), tmp_path / "net.onnx", example_inputs=torch.rand(SIZE))
    assert found.inputs == (("batch", *SIZE[1:]),)
    assert re.search(f"differs from PyTorch by .* at ({size})", found.fixed)


class Strided(nn.Module):
    """Runs at sizes that 8 divides, and adds numbers from -1 to 1 along each row."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 4, 8, stride=8)

    def forward(self, x):
        line = torch.linspace(-1, 1, x.shape[3], dtype=x.dtype)
        return line + F.interpolate(self.down(x), scale_factor=8) * x[:, :1]


def test_sizes_that_the_network_does_not_run_at_are_replaced(tmp_path):
    found = hotswap.export(Strided(), tmp_path / "net.onnx", example_inputs=torch.rand(SIZE))
    assert found.inputs == (("batch", 3, "height", "width"),)
    assert found.tried == (found.tried[0], (1, 3, 40, 56), (3, 3, 24, 24), (2, 3, 24, 72), (2, 3, 64, 64))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_half_precision(tmp_path, dtype):
    net = swapped(targets=["body.target"], guide="body.guide").to(dtype)
    image = torch.rand(SIZE).to(dtype)
    found = hotswap.export(net, tmp_path / "net.pt2", example_inputs=image, dynamic=False)
    assert found.largest_difference < 4 * HALVES[dtype]
    if dtype == torch.bfloat16:
        with pytest.raises(
            hotswap.HotswapError, match=r"onnxruntime has no bfloat16 operations .*write a \.pt2 file"
        ):
            hotswap.export(net, tmp_path / "net.onnx", example_inputs=image, dynamic=False)
        assert not (tmp_path / "net.onnx").exists()
    else:
        found = hotswap.export(net, tmp_path / "net.onnx", example_inputs=image, dynamic=False)
        assert found.largest_difference < 4 * HALVES[dtype]


def test_what_onnxruntime_cannot_run_is_refused(tmp_path):
    net = networks.Plain().eval().double()
    with pytest.raises(hotswap.HotswapError, match="onnxruntime cannot run the file of this network, .* a .pt2 file"):
        hotswap.export(net, tmp_path / "net.onnx", example_inputs=torch.rand(SIZE).double(), dynamic=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.txt", {}, "must end in .onnx or .pt2, got .*net.txt'; or give a format"),
        ("net.onnx", {"format": "torchscript"}, "format must be onnx or exported-program, got 'torchscript'"),
        ("no/net.onnx", {}, "there is no folder"),
    ],
)
def test_refusals(tmp_path, name, options, message):
    with pytest.raises(hotswap.HotswapError, match=message):
        hotswap.export(swapped(), tmp_path / name, example_inputs=torch.rand(SIZE), **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_exporter_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(hotswap.HotswapError, match=r"writing ONNX needs onnx: pip install 'hotswap\[export\]'"):
        hotswap.export(swapped(), tmp_path / "net.onnx", example_inputs=torch.rand(SIZE))


class Choosing(networks.Plain):
    """What it computes depends on what it sees."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_what_cannot_be_exported_says_why(tmp_path):
    net = hotswap.convert(Choosing().eval(), "target", "guide", example_inputs=torch.rand(SIZE))
    with pytest.raises(hotswap.HotswapError, match=r"torch.export cannot export this network: .* \(--static\) asks"):
        hotswap.export(net, tmp_path / "net.onnx", example_inputs=torch.rand(SIZE))
    assert not list(tmp_path.iterdir())


def test_a_file_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    (tmp_path / "net.pt2").write_text("old")
    monkeypatch.setattr(sizes, "TOLERANCE", -1.0)
    with pytest.raises(hotswap.HotswapError, match="differs from PyTorch by .* nothing was written"):
        hotswap.export(swapped(), tmp_path / "net.pt2", example_inputs=torch.rand(SIZE), dynamic=False)
    assert (tmp_path / "net.pt2").read_text() == "old"


def test_the_command(tmp_path):
    checkpoint, path = tmp_path / "swapped.safetensors", tmp_path / "swapped.onnx"
    hotswap.save(hotswap.convert(networks.Plain(), "target", "guide", guide_scale=SCALE), checkpoint)
    arguments = ["export", str(checkpoint), "--model", "networks:Plain", "-o", str(path)]
    arguments += ["--input-size", "64", "--json"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    written = json.loads(result.stdout)
    assert written["format"] == "onnx"
    assert written["inputs"] == [["batch", 3, "height", "width"]]
    assert path.exists()
    result = CliRunner().invoke(main, ["export", str(checkpoint), "-o", str(checkpoint), "--format", "onnx"])
    assert result.exit_code == 1
    assert "is also an input" in result.stderr
