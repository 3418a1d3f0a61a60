import math

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import hotswap
import pac_ops
from benchmarks.evidence import __main__ as command
from benchmarks.evidence import config, controls, depth, half, page, results, runs, summary, text
from benchmarks.evidence.config import DenseCrf, Experiment, PacCrf, Skip
from benchmarks.evidence.runs import Row, Run
from benchmarks.evidence.statistics import difference
from hotswap.errors import HotswapError
from recipes.backbones import SmallSegmenter

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ALIKE = IMAGES[:1].repeat(2, 1, 1, 1)


def network():
    torch.manual_seed(0)
    return SmallSegmenter(3, width=4).eval()


def swapped(targets, guide="auto", **options):
    return hotswap.convert(network(), targets, guide, calibrate_on=[IMAGES], deviation=0.4, **options)


@pytest.mark.parametrize("targets", ["paper", "resize_*"])
def test_shuffled_guides_are_those_of_another_image(targets):
    model = swapped(targets, "input")
    plain, own, own_alike = network()(IMAGES), model(IMAGES), model(ALIKE)
    controls.shuffle_guides(model)
    assert torch.equal(model(ALIKE), own_alike)
    assert not torch.allclose(model(IMAGES), own, atol=1e-6)
    assert not torch.allclose(model(IMAGES), plain, atol=1e-6)
    with pytest.raises(ValueError, match="two images or more"):
        model(IMAGES[:1])


def test_frozen_kernels_leave_a_plain_network_as_strong_as_the_swapped_one():
    model = swapped("paper")
    (name,) = (swap.target for swap in hotswap.status(model).plan.swaps)
    means = torch.tensor(hotswap.status(model).plan.swaps[0].tap_means).view(3, 3)
    frozen = controls.freeze_kernels(model)
    assert type(frozen.get_submodule(name)) is nn.Conv2d
    torch.testing.assert_close(
        frozen.get_parameter(f"{name}.weight"), network().get_parameter(f"{name}.weight") * means
    )
    assert means.min() < 0.9


@pytest.mark.parametrize(
    ("source", "target"), [("input", "output"), ("stage1", "output"), ("stage2.3", "stage3.1.3")]
)
def test_a_skip_starts_as_nothing_and_learns(source, target):
    model = controls.apply(network().train(), Skip(kind="skip", source=source, target=target), IMAGES).eval()
    assert torch.equal(model(IMAGES), network()(IMAGES))  # what its norms have learned, too
    model(IMAGES).square().sum().backward()
    assert model.skip.conv.weight.grad.any()
    with torch.no_grad():
        model.skip.conv.weight.fill_(0.1)
    assert not torch.allclose(model(IMAGES), network()(IMAGES), atol=1e-3)


def test_a_pac_crf_is_trained_behind_a_network_that_stays_as_it_is():
    model = controls.apply(network(), PacCrf(kind="pac_crf", dilations=(1, 2)), IMAGES)
    refined = model(IMAGES)
    refined.square().sum().backward()
    assert refined.shape == (2, 3, 32, 32)
    assert {name.split(".")[0] for name, x in model.named_parameters() if x.grad is not None} == {
        "crf",
        "feat_scales",
    }
    before = [x.clone() for x in model.backbone.buffers()]
    model.train()(IMAGES)
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.buffers(), before, strict=True))  # norms too


def test_a_dense_crf_of_ours_refines_what_the_network_gives():
    model = controls.apply(network(), DenseCrf(kind="refine"), IMAGES)
    torch.testing.assert_close(model(IMAGES), pac_ops.refine(network()(IMAGES), 255 * IMAGES))


def test_differences_are_paired_and_have_students_interval():
    found = difference([1.0, 2.0, 4.0], [0.0, 2.0, 1.0])  # 1, 0, 3: deviation sqrt(7 / 3), t(2) = 4.3027
    assert found.mean == pytest.approx(4 / 3)
    assert found.margin == pytest.approx(4.30265 * math.sqrt(7 / 3) / math.sqrt(3), rel=1e-5)
    assert (found.pairs, found.positive, found.negative) == (3, 2, 0)
    assert not found.is_clear
    assert difference([1.0, 1.1], [0.0, 0.1]).is_clear
    assert math.isnan(difference([1.0], [0.0]).margin)
    assert not difference([1.0], [0.0]).is_clear


# --- which runs, and a run --------------------------------------------------------------------------------

SCENES = {"name": "scenes", "options": {"count": 4, "size": 16, "seed": 0, "keep": True}}
TINY = {
    "question": "?",
    "setting": "tiny",
    "recipe": {
        "model": {"name": "recipes.backbones:SmallSegmenter", "options": {"classes": 6, "width": 4}},
        "data": {"train": SCENES, "validation": SCENES},
        "task": {"name": "segmentation"},
        "batch_size": 2,
        "steps": 2,
        "evaluation": {"batch_size": 2},
    },
    "start": {"steps": 1},
    "searched": SCENES,
    "rates": [1e-4, 1e-2],
    "seeds": 2,
    "metrics": {"miou": "mIoU"},
    "higher_is_better": True,
    "arms": {
        "plain": {"about": "no swap", "changes": {"model": {"checkpoint": "arm:start"}}},
        "as-it-is": {
            "about": "guided",
            "changes": {
                "model": {"checkpoint": "arm:start"},
                "swaps": [{"targets": "resize_*", "guide": "input"}],
                "calibration": {"deviation": 0.4},
            },
            "trained": False,
        },
    },
}


def row(experiment, arm, seed, rate, miou):
    return Row(arm, seed, rate, runs.digest(experiment, arm), {"miou": 0.1}, {"miou": miou}, 1.0)


def test_rates_are_searched_before_arms_are_compared():
    experiment = Experiment.model_validate(TINY)
    first = runs.due("tiny", experiment, [])
    assert first == [Run("tiny", "plain", 0, 1e-4), Run("tiny", "plain", 0, 1e-2), Run("tiny", "as-it-is", 1, 0.0)]
    rows = [row(experiment, "plain", 0, 1e-4, 0.2), row(experiment, "plain", 0, 1e-2, 0.3)]
    rows.append(row(experiment, "as-it-is", 1, 0.0, 0.3))
    assert runs.due("tiny", experiment, rows) == [Run("tiny", "plain", 1, 1e-2), Run("tiny", "plain", 2, 1e-2)]
    other = Experiment.model_validate({**TINY, "recipe": {**TINY["recipe"], "steps": 3}})
    assert runs.due("tiny", other, rows) == first  # rows of another recipe do not count


def test_a_run_trains_from_the_start_and_can_be_repeated(tmp_path, monkeypatch):
    experiment = Experiment.model_validate(TINY)
    monkeypatch.setattr(runs, "read", lambda _: experiment)
    one = runs.one(Run("tiny", "plain", 1, 1e-2), tmp_path)
    again = runs.one(Run("tiny", "plain", 1, 1e-2), tmp_path)
    assert (one.before, one.after) == (again.before, again.after)
    untrained = runs.one(Run("tiny", "as-it-is", 1, 0.0), tmp_path)
    assert untrained.before == untrained.after
    assert [path.name[:7] for path in (tmp_path / "tiny").iterdir()] == ["start-1"]
    rows = [one, untrained, *(row(experiment, "plain", 0, rate, rate) for rate in (1e-4, 1e-2))]
    assert "| `as-it-is` | guided |" in page.block("tiny", experiment, rows)
    assert "Not finished: 4 of 5 runs are there." in page.block("tiny", experiment, rows)


def test_unknown_disparities_are_in_the_truth_and_not_in_the_coarse_map():
    data = depth.Motorcycle(factor=4)
    assert len(data) == 6
    unknown = 0
    for (low, guide), (target, unit) in data:
        assert low.shape == (1, 60, 60)
        assert guide.shape == (3, 240, 240)
        assert target.shape == (1, 240, 240)
        assert (low.min(), low.max()) == (0, 1)
        unknown += int(target.isnan().sum())
        coarse = target[:, 2::4, 2::4]
        torch.testing.assert_close(low[coarse.isfinite()], coarse[coarse.isfinite()])
        assert 1 < unit < 100
    assert 0.03 < unknown / (6 * 240**2) < 0.12


# --- what is committed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", config.names())
def test_the_page_says_what_the_results_say(name):
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, name, page.block(name, config.read(name), results.read(name))) == text


def test_the_summary_says_what_the_results_say():
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.SUMMARY, summary.table()) == text
    named = {(name, arm) for _, arms in summary.ARMS for name, arm in arms.items()}
    assert all(arm in config.read(name).arms for name, arm in named)


def test_an_unknown_experiment_is_named_with_those_there_are():
    with pytest.raises(HotswapError, match=r"there is no experiment 'x'; there are: .*scenes"):
        config.read("x")


@pytest.mark.parametrize("split", text.PHOTOGRAPHS)
def test_strokes_lie_where_their_mask_says(split):
    strokes = text.Strokes(split, 3, 64)
    image, mask = strokes[1]
    assert image.shape == (3, 64, 64)
    assert image.min() >= 0
    assert image.max() <= 1
    assert 0.01 < mask.float().mean() < 0.5
    again, _ = text._drawn.__wrapped__(split, 1, 64)
    assert torch.equal(image, again)
    others = torch.stack([strokes[0][1], strokes[2][1], mask.flip(0), mask.flip(1)]).bool()
    assert contrast(image, mask.bool()) > max(contrast(image, other) for other in others)


def contrast(image, mask):
    """How far the pixels of a mask are from those beside it."""
    near = nn.functional.max_pool2d(mask[None].float(), 7, 1, 3)[0].bool() & ~mask
    return (image[:, mask].mean(dim=1) - image[:, near].mean(dim=1)).norm()


def test_splits_of_strokes_share_nothing():
    for shared in (text.PHOTOGRAPHS, text.FONTS):
        names = [name for split in shared.values() for name in split]
        assert len(names) == len(set(names))


def test_a_network_at_half_the_size_is_guided_at_either():
    plain = half.HalfResolution(network()).eval()
    guides = {"resize_1": "shrink", "resize_2": "input"}
    guided = hotswap.convert(plain, [*guides], guides, calibrate_on=[IMAGES], deviation=0.4)
    assert guided(IMAGES).shape == (2, 3, 32, 32)
    assert [check.deviation for check in hotswap.verify(guided, [IMAGES]).targets] == pytest.approx(
        [0.4, 0.4], abs=0.01
    )


def test_what_is_not_installed_is_one_line(monkeypatch):
    def needs(*_):
        raise HotswapError("a dense CRF needs pydensecrf")

    monkeypatch.setattr(command, "carry_out", needs)
    monkeypatch.setattr(command.results, "read", lambda _: [])
    result = CliRunner().invoke(command.main, ["run", "crf", "--arm", "dense-crf"])
    assert result.exit_code == 1
    assert result.output.rstrip().endswith("Error: a dense CRF needs pydensecrf")
