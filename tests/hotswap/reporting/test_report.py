"""`hotswap.report`: the page is whole and safe, and says what `hotswap.verify` says."""

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from reported import IMAGES, Page, converted
from torch import nn

import hotswap
from hotswap import HotswapError
from hotswap.cli import main


class Kinds(nn.Module):
    """One of every kind of target."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.seven = nn.Conv2d(4, 4, 7, padding=3, groups=4)
        self.nine = nn.Conv2d(4, 4, 9, padding=4, groups=4)
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.up = nn.ConvTranspose2d(4, 4, 3, 2, 1, 1)
        self.larger = nn.Upsample(scale_factor=2, mode="bilinear")
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x = self.nine(F.relu(self.seven(F.relu(self.stem(x)))))
        x = F.avg_pool2d(self.larger(F.avg_pool2d(self.up(self.pool(x)), 2)), 2)
        return self.head(F.interpolate(x, scale_factor=2, mode="bilinear"))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A report on every kind of target, in evaluation, with its network."""
    torch.manual_seed(3)
    model = Kinds()
    wanted = ["seven", "nine", "pool", "up", "resize_*"]
    model = hotswap.convert(model, wanted, "input", guide_scale=1.5, conserve="window", example_inputs=IMAGES[:1])
    path = tmp_path_factory.mktemp("kinds") / "report.html"
    return model, hotswap.report(model, IMAGES, path), Page(path)


# --- the page -------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(kinds):
    _, _, page = kinds
    assert page.all("script") == page.all("link") == page.all("iframe") == []
    addresses = [
        attributes[name] for _, attributes in page.elements for name in ("src", "href") if name in attributes
    ]
    assert addresses
    assert {address.partition(":")[0] if address[0] != "#" else "#" for address in addresses} == {"data", "#"}
    style = re.search(r"<style>(.*?)</style>", page.source, re.DOTALL).group(1)
    assert set(re.findall(r"url\((.{5})", style)) == {"data:"}
    assert "@import" not in style
    assert any(m.get("http-equiv") == "Content-Security-Policy" for m in page.all("meta"))


def test_the_page_can_be_read_by_all(kinds):
    _, _, page = kinds
    assert page.all("html") == [{"lang": "en"}]
    assert any(m.get("name") == "viewport" for m in page.all("meta"))
    assert all(image["alt"].strip() for image in page.all("img"))
    assert all(svg["role"] == "img" and svg["aria-labelledby"] for svg in page.all("svg"))
    assert all(div.get("aria-label") for div in page.all("div") if div.get("role"))
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert {a["href"][1:] for a in page.all("a") if a["href"][0] == "#"} <= set(names)
    assert "prefers-color-scheme: dark" in page.source


def test_every_kind_of_target_is_shown_on_every_image(kinds):
    model, result, page = kinds
    plan = hotswap.status(model).plan
    names = [swap.target for swap in plan.swaps] + [resize.name for resize in plan.resizes]
    assert [t.check.path for t in result.content.targets] == names
    assert all(len(t.views) == 2 and t.cost and t.entry.guide_name == "input" for t in result.content.targets)
    kinds = [t.kind.partition(",")[0] for t in result.content.targets]
    assert kinds == ["convolution", "convolution", "average pool", "transposed convolution", *["enlargement"] * 2]
    assert all(name in page.text for name in names)
    sizes = [len(view.windows[0].rows) for t in result.content.targets for view in t.views[:1]]
    assert sizes == [7, 0, 3, 3, 2, 2]  # a window of 9 x 9 is a picture
    assert result.content.targets[1].views[0].windows[0].picture is not None


def test_the_figures_are_those_of_verify(kinds):
    model, result, _ = kinds
    check, told = hotswap.verify(model, IMAGES), json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert [t["path"] for t in told["targets"]] == [t.path for t in check.targets]
    for mine, theirs in zip(told["targets"], check.targets, strict=True):
        assert mine["deviation"] == pytest.approx(theirs.deviation, rel=1e-5)
        assert mine["max_deviation"] == pytest.approx(theirs.max_deviation, rel=1e-5)
        shares, edges = (np.array(mine["kernel_histogram"][name]) for name in ("shares", "edges"))
        assert shares.sum() == pytest.approx(1)
        # K's mean lies where the histogram says, and images of one size weigh the same
        assert 1 - mine["deviation"] == pytest.approx((shares * (edges[1:] + edges[:-1]) / 2).sum(), abs=0.0125)
        assert mine["deviation"] == pytest.approx(np.mean(list(mine["deviation_by_image"].values())), rel=1e-4)
        assert mine["kernel_quantiles"]["0.1"] <= mine["kernel_quantiles"]["0.5"] <= mine["kernel_quantiles"]["0.9"]
    assert told["output_relative"] == pytest.approx(check.output_relative, rel=1e-4)
    assert told["plan"] == hotswap.status(model).plan.to_dict()
    assert "deviation (mean 1-K)" in str(result)


def test_nothing_in_the_network_changes(tmp_path):
    model = converted().train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    hotswap.report(model, IMAGES, tmp_path / "r.html", limit=1)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert all(m.training and not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())


def test_text_is_escaped(tmp_path):
    hostile = "<script>alert(1)<"  # and what would end it, which a file's name cannot hold
    folder = tmp_path / '"><img src=x onerror=alert(1)>'
    folder.mkdir()
    for name in (f"{hostile}.png", "{{ 7*7 }}'\"&.png", "\udcff.png"):
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / name, "PNG")
    net = nn.Sequential()
    net.add_module("<b onclick=x>", nn.Conv2d(3, 4, 3, padding=1))
    net.add_module(hostile, nn.Conv2d(4, 2, 3, padding=1))
    net.__class__ = type("</title><script>", (nn.Sequential,), {})
    model = hotswap.convert(net, hostile, "<b onclick=x>", guide_scale=1.0)
    hotswap.report(model, folder, tmp_path / "r.html", input_size=(3, 8, 8), architecture="a:b?<i>")
    page = Page(tmp_path / "r.html")
    assert page.all("script") == page.all("b onclick") == page.all("i onclick") == []
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert [name for name in page.all("img") if not name["src"].startswith("data:image/")] == []
    assert f"{hostile}.png" in page.text
    assert "{{ 7*7 }}'\"&.png" in page.text
    assert "?.png" in page.text  # a byte that is no text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": networks.Plain()}, "nothing in this network is swapped"),
        ({"images": "nowhere"}, "cannot read images from 'nowhere'"),
        ({"images": "empty"}, "there is no image in 'empty'"),
        ({"images": "broken"}, "cannot read image 'broken/a.png'"),
        ({"images": []}, "at least one batch"),
        ({"images": torch.rand(0, 3, 8, 8)}, "batch of size 0"),
        ({"path": "missing/r.html"}, "there is no folder"),
        ({"path": "empty"}, "must end in .html"),
        ({"path": "folder.html"}, "it is a folder"),
        ({"limit": 0}, "limit must be a whole number"),
        ({"outputs": "colours"}, "outputs must be one of auto, labels, maps"),
        ({"mean": (0.5,)}, "are for a folder of images"),
    ],
)
def test_what_cannot_be_reported_is_refused_and_nothing_is_written(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken", "folder.html"):
        Path(name).mkdir()
    Path("broken/a.png").write_bytes(b"\x89PNG no")
    Path("r.html").write_text("old")
    given = {"model": converted(), "images": IMAGES, "path": "r.html"} | changes
    with pytest.raises(HotswapError, match=re.escape(message)):
        hotswap.report(given.pop("model"), given.pop("images"), given.pop("path"), **given)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "empty", "folder.html", "r.html"]
    assert Path("r.html").read_text() == "old"


# --- the command ----------------------------------------------------------------------------------------------


def test_the_command_and_the_one_it_tells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(networks.__file__).parent))
    Path("my photos").mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"my photos/{index}.png")
    hotswap.save(converted(), "s.safetensors")
    words = ["report", "s.safetensors", "--model", "networks:Plain", "--images", "my photos", "--input-size", "24x32"]
    done = CliRunner().invoke(main, [*words, "--limit", "2", "--mean", "0,0.5,1", "-o", "r.html", "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["path"], told["bytes"]) == ("r.html", Path("r.html").stat().st_size)
    assert "wrote r.html" in done.stderr

    page = Page("r.html")
    command = next(text for text in page.texts if text.startswith("hotswap report "))
    Path("r.html").unlink()
    again = CliRunner().invoke(main, [*shlex.split(command)[1:], "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["targets"][0]["deviation"] == told["targets"][0]["deviation"]
    python = next(text for text in page.texts if text.startswith("import hotswap"))
    compile(python, "report", "exec")
    assert "mean=(0.0, 0.5, 1.0)" in python
    plan = next(a["href"] for a in page.all("a") if a.get("download") == "plan.json")
    assert plan.startswith("data:application/json;base64,")

    refused = CliRunner().invoke(main, [*words, "-o", "s.safetensors"])
    assert refused.exit_code == 1
    assert "is also an input" in refused.stderr
