"""`hotswap.report`: the page is whole and safe, and says what `hotswap.verify` says."""

import json
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import networks
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from torch import nn

import hotswap
from hotswap import HotswapError, colours
from hotswap.cli import main
from hotswap.network.dry_run import observe
from hotswap.reporting import cost, diagram, figures, outline, outputs, samples, timing

ANYTHING = nn.Module()  # may be given
IMAGES = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(1))
VOID = {"meta", "img", "rect", "path", "circle", "br", "input", "link"}


class Page(HTMLParser):
    """A page as a browser sees it; fails where elements are not closed in turn."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.texts, self.stack = [], [], []
        self.source = Path(path).read_text("utf-8")
        self.feed(self.source)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if "style" not in self.stack:
            self.texts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.texts).split())


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


def converted(scale=1.0):
    return hotswap.convert(networks.Plain(), "target", "guide", guide_scale=scale, example_inputs=IMAGES[:1])


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A report on every kind of target, in evaluation, with its network."""
    torch.manual_seed(3)
    model = Kinds()
    wanted = ["seven", "nine", "pool", "up", "resize"]
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


# --- outputs --------------------------------------------------------------------------------------------------


def test_labels_that_changed_are_counted():
    plain = torch.zeros(1, 4, 5, 6)
    plain[0, 2] = 1
    swapped = plain.clone()
    swapped[0, 3, 0, :3] = 2
    made = outputs.compare({"out": plain}, {"out": swapped})
    assert (made.kind, made.where, made.changed) == ("labels", "output['out']", pytest.approx(0.1))
    assert [(label.number, label.plain, label.swapped) for label in made.labels] == [
        (2, 1.0, pytest.approx(0.9)),
        (3, 0.0, pytest.approx(0.1)),
    ]
    assert [panel.caption for panel in made.panels] == ["plain", "swapped", "changed: 10.00% of pixels"]
    assert "10.00% of pixels" in outputs.summary([made, None])


@pytest.mark.parametrize(
    ("shape", "wanted", "kind"),
    [
        ((1, 1, 4, 4), "auto", "maps"),
        ((1, 3, 4, 4), "auto", "picture"),
        ((1, 2, 4, 4), "auto", "labels"),
        ((1, 3, 4, 4), "labels", "labels"),
        ((1, 1, 4, 4), "labels", "labels"),
        ((1, 8, 4, 4), "maps", "maps"),
        ((1, 10), "auto", "scores"),
        ((1, 10, 1, 1), "auto", None),
        ((1, 7, 16), "auto", None),
        ((0, 4), "auto", None),
        ((), "auto", None),
    ],
)
def test_outputs_are_drawn_by_their_shape(shape, wanted, kind):
    made = outputs.compare([torch.rand(shape)], [torch.rand(shape)], wanted)
    assert (None if made is None else made.kind) == kind


def test_labels_of_one_channel_are_those_of_a_binary_logit():
    plain, swapped = torch.full((1, 1, 4, 5), -1.0), torch.full((1, 1, 4, 5), -1.0)
    plain[0, 0, 0], swapped[0, 0, :2] = 2, 2
    made = outputs.compare(plain, swapped, "labels")
    assert made.changed == pytest.approx(0.25)
    assert {label.number: (label.plain, label.swapped) for label in made.labels} == {0: (0.75, 0.5), 1: (0.25, 0.5)}


def test_scores_are_told_of_the_largest_of_either():
    plain, swapped = torch.zeros(1, 9), torch.zeros(1, 9)
    plain[0, 4], swapped[0, 7] = 5, 5
    made = outputs.compare(plain, swapped)
    assert {score.number for score in made.scores[:5]} >= {4, 7}
    assert made.scores[0].number == 4
    assert (made.changed, made.probabilities) == (1.0, True)
    assert "1 of 1 images" in outputs.summary([made])
    already = torch.full((1, 4), 0.25)
    assert outputs.compare(already, already).scores[0].plain == 0.25


def test_maps_and_their_difference_are_seen():
    plain, swapped = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    plain[..., 0, 0], swapped[..., 3, 3] = 1, 0.4
    made = outputs.compare(plain, swapped)
    assert made.panels[2].caption.startswith("swapped - plain: blue -")
    palette = colours.difference_palette()
    assert palette[128].tolist() == [255, 255, 255]
    assert palette[0][2] > palette[0][0]
    assert palette[255][0] > palette[255][2]
    assert outputs.compare(plain, plain * torch.nan) is not None


def test_what_detectors_give_is_left_undrawn():
    boxes = [{"boxes": torch.rand(1, 4), "scores": torch.rand(1)}]
    assert outputs.compare(boxes, boxes) is None
    assert outputs.compare(boxes, [{"boxes": torch.rand(2, 4)}]) is None


# --- figures --------------------------------------------------------------------------------------------------


def test_a_histogram_counts_what_lies_outside_too():
    seen = figures.Histogram()
    seen.add(torch.tensor([0.0, 0.5, 1.0, 1.0, 1.5, -0.5, torch.nan, torch.inf]))
    assert (seen.below, seen.above, seen.not_finite) == (1, 1, 2)
    assert sum(seen.bars) == pytest.approx(4 / 6)
    assert seen.bars[-1] == pytest.approx(2 / 6)
    assert seen.quantile(0.5) == pytest.approx(0.5, abs=2e-3)
    assert figures.Histogram().quantile(0.5) is None


def test_pixels_are_chosen_where_neighbours_count_least_and_most():
    change = torch.full((40, 60), 0.2)
    change[10, 20], change[30, 50], change[25:30, 5:10] = 0.9, 0.8, 0.0
    first, second, _, last = figures._places(change)
    assert [int(first[0] * 40), int(first[1] * 60)] == [10, 20]
    assert [int(second[0] * 40), int(second[1] * 60)] == [30, 50]
    assert 25 <= last[0] * 40 < 30
    assert 5 <= last[1] * 60 < 10
    assert len(list(figures._places(torch.zeros(4, 4)))) == 1


def test_a_guide_that_is_not_finite_is_told(tmp_path):
    result = hotswap.report(converted(), IMAGES * torch.nan, tmp_path / "r.html", limit=1)
    assert any("not finite" in text for text in result.content.warnings)
    json.dumps(result.to_dict(), allow_nan=False)


def test_memory_is_of_tensors_alive_together():
    x = torch.rand(1000)

    def chain():
        y = x + 1  # 4 kB
        z = y * 2  # 8 kB together
        del y
        return z.add_(1).view(10, 100).exp()  # 8 kB again

    assert timing.peak(chain) == 8000
    assert timing.peak(lambda: x.view(10, 100)) == 0


def test_times_that_vary_are_told():
    calm, busy = timing.Use(1.0, 0, 0.1), timing.Use(1.0, 0, 0.9)
    told = [cost.Costs(cost.Cost(calm, use), {}, "").unsteady for use in (calm, busy)]
    assert told == [False, True]
    (use,) = timing.measured([lambda: torch.ones(4)], torch.device("cpu"))
    assert use.bytes == 16
    assert use.milliseconds > 0


@pytest.mark.parametrize(("method", "shared"), [("fx", 2), ("hooks", 1)])
def test_distances_are_shared_as_the_method_shares_them(tmp_path, method, shared):
    net = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)])
    model = hotswap.convert(net, ["1", "2"], "0", guide_scale=1.0, method=method)
    costs = hotswap.report(model, IMAGES, tmp_path / "r.html", limit=1).content.costs
    assert [c.shared for c in costs.targets.values()] == [shared, shared]
    assert all(0 < c.guide.milliseconds <= c.swapped.milliseconds for c in costs.targets.values())


# --- the drawing ----------------------------------------------------------------------------------------------


class Deep(nn.Module):
    """Blocks in stages, as in a residual network."""

    def __init__(self, blocks):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.stage = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(blocks)))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.head(self.stage(self.stem(x)))


def rows_of(model):
    sample = next(samples.from_batches(ANYTHING, IMAGES, 1).items)
    return outline.outline(model, hotswap.status(model).plan, observe(model, IMAGES[:1]), sample)


def test_all_but_guides_and_targets_is_folded():
    model = hotswap.convert(Deep(30), "stage.25.0", "stage.3.0", guide_scale=1.0, method="fx")
    rows = rows_of(model)
    assert len(rows) < 15
    assert [row.key for row in rows if row.kind in (outline.TARGET, outline.GUIDE)] == ["stage.3.0", "stage.25.0"]
    assert rows[-2].label == "head"
    assert "4 to 24" in [row.label for row in rows]
    assert rows[0].size == "3 × 24 × 32"


def test_many_targets_are_drawn_densely():
    model = hotswap.convert(Deep(25), "stage.*.0", {"stage.[0-2]*": "stem", "*": "input"}, guide_scale=1.0)
    rows = rows_of(model)
    assert len(rows) < 35
    drawing = diagram.draw(rows)
    assert not drawing.is_long
    assert len(drawing.lanes) == 2
    assert drawing.lanes[0].x != drawing.lanes[1].x  # which overlap
    assert sum(len(lane.targets) for lane in drawing.lanes) == 25
    assert all(box.right < lane.x < drawing.width for lane in drawing.lanes for box in drawing.boxes)


# --- samples --------------------------------------------------------------------------------------------------


def test_batches_are_taken_apart_up_to_the_limit():
    pairs = [(IMAGES, torch.arange(2.0), "mode"), (IMAGES, torch.arange(2.0), "mode")]
    found = samples.from_batches(ANYTHING, pairs, 3)
    items = list(found.items)
    assert (found.count, found.description) == (3, "3 images, the first of those given")
    assert [tuple(x.shape) for x in items[1].arguments[:2]] == [(1, 3, 24, 32), (1,)]
    assert items[1].arguments[1].item() == 1
    assert items[1].arguments[2] == "mode"
    assert items[0].picture.min() == 0
    assert items[0].picture.max() == 255
    (whole,) = samples.from_batches(ANYTHING, [([IMAGES[0]],)], 3).items
    assert whole.picture is None


def test_a_folder_is_sampled_evenly_and_says_so(tmp_path):
    for index in range(10):
        Image.fromarray(np.full((6, 8, 3), 20 * index, np.uint8)).save(tmp_path / f"{index}.png")
    result = hotswap.report(converted(), tmp_path, tmp_path / "r.html", limit=2, input_size=(3, 16, 24), mean=(0.5,))
    assert [image.name for image in result.content.images] == ["0.png", "5.png"]
    assert result.content.images_from == f"2 images of 10, evenly spread, from {tmp_path}"
    assert result.content.images_from in Page(tmp_path / "r.html").text
    assert "mean=(0.5,)" in result.content.steps.python


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
