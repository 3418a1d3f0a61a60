from functools import partial

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import hotswap
from examples import demo, tour
from examples.checks import check, save_load_revert
from examples.hed import load_segmenter
from recipes.finetune import evaluate
from recipes.landwater import LandWater
from recipes.pictures import pixels


def test_help_names_the_options():
    for command, options in ((demo.main, ["--out"]), (tour.main, ["--out", "--steps"])):
        result = CliRunner().invoke(command, ["--help"])
        assert result.exit_code == 0
        assert all(option in result.output for option in options)


def test_a_failed_check_ends_the_demo_with_what_failed():
    with pytest.raises(SystemExit, match="check failed: water is wet"):
        check(False, "water is wet")


def test_a_passed_check_shows_its_mark(capsys):
    check(True, "water is wet")
    assert "✓ water is wet" in capsys.readouterr().out


def test_every_photograph_gets_two_pictures(hed, swapped_hed, face, tmp_path, monkeypatch):
    monkeypatch.setattr(tour, "PHOTOS", {"face": [(100, 40), (20, 20)]})
    written = tour.draw_photos(tmp_path, {"face": face[..., :64]}, hed, swapped_hed, swapped_hed, swapped_hed)
    assert [path.name for path in written] == ["face_edges.png", "face_kernels.png"]
    for path in written:
        with Image.open(path) as image:
            assert image.width > 1000


def test_errors_are_painted_red():
    found, truth = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 1, 0, 1]])
    water, land, false_land, false_water = tour.paint(found, truth)[0].astype(int)
    assert land.sum() > water.sum() + 200
    for wrong in (false_land, false_water):
        assert wrong[0] > max(wrong[1], wrong[2]) + 100


def test_a_prediction_row_states_how_much_is_right():
    class AllLand(torch.nn.Module):
        def forward(self, image):
            return torch.stack([torch.zeros_like(image[:, 0]), torch.ones_like(image[:, 0])], dim=1)

    image, labels = torch.rand(3, 4, 4), torch.tensor([[1, 1, 1, 0]] * 4)
    row = tour.prediction_row(image, labels, {"plain": AllLand(), "swapped": AllLand()})
    assert [caption for caption, _ in row[2:]] == [
        "plain: 75.0% right, errors red",
        "swapped: 75.0% right, errors red",
    ]
    assert (row[0][1] == pixels(image)).all()


def test_only_the_wanted_parameters_are_trained():
    model = load_segmenter()
    tour.set_trainable(model, lambda name: name.startswith("score"))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"score{s}.{part}" for s in (3, 4, 5) for part in ("weight", "bias")
    }


def test_all_networks_are_tuned_and_only_one_has_swapped_convolutions(monkeypatch, tmp_path, capsys):
    runs = []

    def record(model, dataset, **arguments):
        trainable = [p for p in model.parameters() if p.requires_grad]
        runs.append((id(model), dataset, arguments, len(trainable)))
        with torch.no_grad():
            model.get_parameter("score3.bias")[1] += 0.5
        return [0.25] * 12

    monkeypatch.setattr(tour, "finetune", record)
    monkeypatch.setattr(tour, "LandWater", partial(LandWater, size=48))
    monkeypatch.setattr(
        tour, "evaluate", lambda model, dataset: evaluate(model, torch.utils.data.Subset(dataset, [0]))
    )
    plain, swapped, picture = tour.tune_both(tmp_path, steps=12)
    assert hotswap.status(plain).plan is None
    assert [s.target for s in hotswap.status(swapped).plan.swaps] == ["conv4_3", "conv5_3"]
    assert picture.is_file()
    assert "prove nothing" in capsys.readouterr().out
    head, first, second, third = runs
    assert head[3] == 6  # the score layers alone
    assert (first[0], second[0]) == (id(plain), id(swapped))
    assert first[1] is second[1]  # the same data,
    assert first[3] == second[3] == 32  # all parameters
    assert third[3] == 32 + 1  # and a scale for the last enlargement
    without_label = [{k: v for k, v in run[2].items() if k != "label"} for run in (first, second, third)]
    assert without_label[0] == without_label[1] == without_label[2]  # the same budget, rate and seed
    # Both start from the same weights: the swap was made after the score layers were trained.
    assert torch.equal(plain.score3.bias, swapped.score3.bias)


def _swapped_segmenter(guide_scale):
    plain = load_segmenter()
    for name, parameter in plain.named_parameters():
        if name.startswith("score"):
            torch.nn.init.normal_(parameter, std=0.01)
    image = torch.rand(1, 3, 64, 64)
    return plain, hotswap.convert(plain, ["conv5_3"], "conv2_2", guide_scale=guide_scale, example_inputs=image)


def test_save_load_and_revert_pass_their_checks(tmp_path, face):
    plain, swapped = _swapped_segmenter(0.01)
    path = save_load_revert(tmp_path, plain, swapped, load_segmenter(), face[..., :64, :64])
    assert path.stat().st_size > 4 * sum(p.numel() for p in plain.parameters())


def test_a_file_that_loads_as_something_else_fails_its_check(tmp_path, monkeypatch, face):
    plain, swapped = _swapped_segmenter(0.01)
    monkeypatch.setattr(hotswap, "load", lambda path, model, example_inputs: plain)  # the swap got lost
    with pytest.raises(SystemExit, match=r"check failed: swapped\.safetensors loads, and gives the same output"):
        save_load_revert(tmp_path, plain, swapped, load_segmenter(), face[..., :64, :64])
