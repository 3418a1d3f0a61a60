"""What "resize" and "resize_*" name, wherever a name is given, and what is said of the choice."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from command_line import error_of, run
from tiny_recipe import Small, finetune, written
from torch import nn

import hotswap
from hotswap.errors import HotswapError

IMAGE = torch.rand(1, 3, 32, 32)


class Decoder(nn.Module):
    """Features enlarged by 2 for a convolution; scores by 2, 2 and, along one axis less, 1.5."""

    def __init__(self):
        super().__init__()
        self.down, self.conv = nn.Conv2d(3, 4, 3, 8, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.resize_head = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 2, 1)
        self.further = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x):
        fine = self.resize_head(self.conv(self.up(self.down(x))))
        aside = F.interpolate(fine, scale_factor=1.5, mode="bilinear")
        return self.further(F.interpolate(fine, scale_factor=2, mode="bilinear")), aside


def aliases(plan):
    return [resize.target_alias for resize in plan.resizes]


def planned(targets, guide="input", **options):
    return hotswap.plan(Decoder(), targets, guide, example_inputs=IMAGE, **options)


def test_resize_takes_scores_and_says_what_it_leaves():
    plan = planned("resize")
    assert aliases(plan) == ["resize_3", "resize_4"]
    assert plan.notes[:2] == (
        '"resize" takes resize_3, resize_4 (x4 in 2 steps, scores): nothing but pointwise operations follow',
        (
            '"resize" leaves resize_1 (x2, features: conv follows), resize_2 (x1.5, scores); '
            '"resize_*" takes all that can be guided'
        ),
    )
    assert str(plan).count("note: ") == len(plan.notes)
    again = hotswap.Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    lines = [line.split("  ") for line in str(plan).splitlines()]
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert [row for row in rows if row[-1].startswith(("taken:", "left:"))] == TABLE


SMALL, POINTWISE = "the factor is below 2", "nothing but pointwise operations follow"
HARM = "guiding enlargements of features did harm (-0.3 to -3.5 points)"
TABLE = [
    ["resize_1", "up", "x2", "features: conv follows", f"left: {HARM}"],
    ["resize_2", "F.interpolate 0 in the network", "x1.5", "scores", f"left: {SMALL}"],
    ["resize_3", "F.interpolate 1 in the network", "x4", "scores", f"taken: {POINTWISE}"],
    ["resize_4", "further", "x4", "scores", f"taken: {POINTWISE}"],
]


def test_the_verdicts_are_those_of_inspect_and_stay_with_the_converted_network_but_in_no_file():
    plan = planned(["resize_1", "resize_3"])
    listed = hotswap.inspect(Decoder(), IMAGE).resizes
    assert [(e.alias, e.factor, e.place, e.taken, e.verdict) for e in plan.enlargements] == [
        (r.alias, r.factor, r.place, r.automatic, r.verdict) for r in listed if r.factor > 1
    ]
    converted = hotswap.convert(Decoder(), ["resize_1", "resize_3"], "input", example_inputs=IMAGE)
    assert hotswap.status(converted).plan.enlargements == plan.enlargements
    assert "enlargements" not in plan.to_dict()
    assert planned("conv", "down").enlargements == ()


@pytest.mark.parametrize("names", ["resize_*", ["resize_*"], ["resize_1", "resize_*"], "resize_?", r"re:resize_\d"])
def test_patterns_over_aliases_take_all(names):
    plan = planned(names)
    assert aliases(plan) == ["resize_1", "resize_2", "resize_3", "resize_4"]
    assert plan.notes[0] == '"resize" would leave resize_1 (x2, features: conv follows), resize_2 (x1.5, scores)'


def test_the_glob_never_means_convolutions_of_that_name():
    class Named(Decoder):
        def __init__(self):
            super().__init__()
            self.resize_conv, self.conv = self.conv, nn.Identity()

        def forward(self, x):
            return super().forward(x), self.resize_conv(self.down(x))

    plan = hotswap.plan(Named(), "resize_*", "input", example_inputs=IMAGE)
    assert plan.swaps == ()
    assert len(plan.resizes) == 4
    plan = hotswap.plan(Named(), "resize_c*", "down", example_inputs=IMAGE)  # which other globs do
    assert [swap.target for swap in plan.swaps] == ["resize_conv"]


def test_keys_of_mappings_mean_what_targets_mean():
    guides = {"resize": ["down", "input"], "resize_*": "input"}
    scales = {"resize": 3.0, "resize_*": 2.0, "resize_4": 1.0}
    with pytest.raises(HotswapError, match="guide 'down' of 4 x 4 is coarser than .* resize_3"):
        planned("resize_*", guides)
    plan = planned("resize_*", guide_scale=scales)
    assert {r.target_alias: r.guide_scale for r in plan.resizes} == {
        "resize_1": 2,
        "resize_2": 2,
        "resize_3": 3,
        "resize_4": 1,
    }
    assert {r.guide_scale for r in planned("resize", guide_scale={"resize": 3.0}).resizes} == {3}
    assert {r.guide_scale for r in planned("resize_1", guide_scale={"resize_*": 3.0}).resizes} == {3}
    with pytest.raises(HotswapError, match="guide_scale has 'resize', which is none of the targets"):
        planned("resize_1", guide_scale={"resize": 3.0})


def test_what_is_guided_already_keeps_its_place():
    net = hotswap.convert(Decoder(), "resize_4", "input", example_inputs=IMAGE)
    net = hotswap.convert(net, "resize", "input", example_inputs=IMAGE)
    assert aliases(hotswap.status(net).plan) == ["resize_4", "resize_3"]
    places = [info.place for info in hotswap.inspect(net, IMAGE).resizes]
    assert places == [info.place for info in hotswap.inspect(Decoder(), IMAGE).resizes]


def test_inspect_shows_factor_place_and_verdict():
    inspection = hotswap.inspect(Decoder(), IMAGE)
    infos = [(info.factor, info.place, info.verdict) for info in inspection.resizes]
    assert infos == [
        (
            2.0,
            "features: conv follows",
            "left: guiding enlargements of features did harm (-0.3 to -3.5 points)",
        ),
        (1.5, "scores", "left: the factor is below 2"),
        (4.0, "scores", "taken: nothing but pointwise operations follow"),
        (4.0, "scores", "taken: nothing but pointwise operations follow"),
    ]
    listed = inspection.to_dict()["resizes"]
    assert [(entry["factor"], entry["place"], entry["verdict"]) for entry in listed] == infos
    for factor, place, verdict in infos:
        assert any(
            all(text in line for text in (f"x{factor:g}", place, verdict)) for line in str(inspection).splitlines()
        )


@pytest.mark.parametrize("footprint", [2, 4])
def test_nearest_scores_need_a_wider_footprint(footprint):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 4, 1), nn.Upsample(scale_factor=4))
    options = {"example_inputs": IMAGE, "footprint": footprint}
    if footprint == 4:
        assert aliases(hotswap.plan(net, "resize", "input", **options)) == ["resize_1"]
    else:
        with pytest.raises(HotswapError, match=r"resize_1 \(x4, cannot be guided: mode 'nearest' reads one"):
            hotswap.plan(net, "resize", "input", **options)


def test_many_of_a_kind_are_named_in_short():
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.parts = nn.Conv2d(3, 2, 3, 4, 1), nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(7))
            self.up = nn.ModuleList(nn.Upsample(scale_factor=4, mode="bilinear") for _ in range(7))

        def forward(self, x):
            return [up(part(self.down(x))) for up, part in zip(self.up, self.parts, strict=True)]

    plan = hotswap.plan(Turns(), "resize", "input", example_inputs=IMAGE)
    assert len(plan.resizes) == 7
    assert plan.notes[0].startswith('"resize" takes resize_1, resize_2, ... resize_7 (x4, scores): ')


# --- the command line and recipes -----------------------------------------------------------------------------

NET = "test_choice:Decoder"


def test_commands(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    size = ("--input-size", "32x32")
    plan = json.loads(run("plan", NET, "--target", "resize_*", "--guide", "input", *size, "--json").stdout)
    assert [resize["target_alias"] for resize in plan["resizes"]] == ["resize_1", "resize_2", "resize_3", "resize_4"]
    shown = run("plan", NET, "--target", "resize", "--guide", "input", *size)
    assert '"resize" leaves resize_1 (x2, features: conv follows)' in shown.stdout + shown.stderr
    assert [
        [each["alias"], each["name"], f"x{each['factor']:g}", each["place"], each["verdict"]]
        for each in plan["enlargements"]
    ] == TABLE
    Path(tmp_path / "plan.json").write_text(json.dumps(plan))
    again = json.loads(run("plan", NET, "--plan", tmp_path / "plan.json", *size, "--json").stdout)
    assert again["resizes"] == plan["resizes"]
    dry = run("convert", NET, "--target", "resize", "--guide", "input", *size, "--dry-run", "--json").stdout
    assert json.loads(dry)["enlargements"] == plan["enlargements"]
    listed = json.loads(run("inspect", NET, *size, "--json").stdout)["resizes"]
    assert [(r["automatic"], r["verdict"].partition(":")[0]) for r in listed] == [
        (False, "left"),
        (False, "left"),
        (True, "taken"),
        (True, "taken"),
    ]
    climbing = "smp:Unet?encoder_name=resnet18"
    pytest.importorskip("segmentation_models_pytorch", reason="pip install hotswap[smp]")
    refused = run("plan", climbing, "--target", "resize", "--guide", "input", "--input-size", "64x64", code=1)
    assert '"resize_*" takes all that can be guided: resize_1 (x2, features: ' in error_of(refused)


@pytest.mark.parametrize("targets", ["resize", "resize_*"])
def test_recipes(targets, tmp_path):
    text = yaml.safe_load(f"swaps: [{{targets: {targets}, guide: {{{targets}: input}}}}]")
    finetune(written(tmp_path, **text, steps=1), tmp_path / "out")
    plan = hotswap.status(hotswap.load(next((tmp_path / "out").rglob("last.safetensors")), model=Small())).plan
    assert aliases(plan) == ["resize_1"]
