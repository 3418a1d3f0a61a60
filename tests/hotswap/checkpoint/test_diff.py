"""Two checkpoints compared."""

import json

import networks
import pytest
import torch
from click.testing import CliRunner

import hotswap
from hotswap.checkpoint.diff import diff
from hotswap.checkpoint.read import read
from hotswap.cli import main


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return networks.Plain()


def saved(folder, name, model):
    hotswap.save(model, folder / name)
    return read(folder / name)


def test_the_same_twice(tmp_path, plain):
    one, other = (saved(tmp_path, name, plain) for name in ("a.safetensors", "b.pt"))
    found = diff(one, other)
    assert found.same
    assert found.equal == len(plain.state_dict())
    assert str(found) == "the same"


def test_plans_scales_and_weights_that_differ(tmp_path, plain):
    swapped = hotswap.convert(plain, "target", "guide", learn_scale=True, guide_scale=0.5)
    one = saved(tmp_path, "a.pt", swapped)
    with torch.no_grad():
        swapped.head.weight *= 2
        swapped.target.bias += 0.25
        swapped.target.guide_log_scale += 1
    found = diff(one, saved(tmp_path, "b.pt", swapped))
    assert {w.name for w in found.weights} == {"head.weight", "target.bias", "target.guide_log_scale"}
    by_name = {w.name: w for w in found.weights}
    assert by_name["head.weight"].relative == pytest.approx(1)
    assert by_name["target.bias"].largest == pytest.approx(0.25)
    assert [s.name for s in found.settings] == ["target: guide_scale"]
    assert [w.relative for w in found.weights] == sorted((w.relative for w in found.weights), reverse=True)
    against_plain = diff(saved(tmp_path, "c.pt", plain), one)
    assert against_plain.only_second == ("target.guide_log_scale",)
    assert ("target", None, "swapped") in [(s.name, s.first, s.second) for s in against_plain.settings]
    assert not against_plain.weights


def test_shapes_dtypes_and_names_that_differ(tmp_path, plain):
    half = saved(tmp_path, "half.pt", networks.Plain().half())
    wide = saved(tmp_path, "wide.pt", networks.Plain(c_out=12))
    found = diff(saved(tmp_path, "a.pt", plain), wide)
    assert {w.name for w in found.weights if w.relative is None} == {"target.weight", "target.bias", "head.weight"}
    assert "(8, 8, 3, 3) -> (12, 8, 3, 3)" in str(found)
    assert "float16 -> float32" in str(diff(half, wide))


def test_refinements_of_outputs_that_differ(tmp_path):
    torch.manual_seed(0)
    net, image = torch.nn.Conv2d(3, 4, 3, padding=1).eval(), torch.rand(1, 3, 16, 16)
    guided, other, crf = (
        hotswap.convert(net, target, calibrate_on=[image])
        for target in ("output_guided", "output_guided", "output_crf")
    )
    other._hotswap_output.rescale(6.0)
    made = [net, guided, other, crf]
    read_again = [saved(tmp_path, f"{n}.safetensors", model) for n, model in enumerate(made)]
    assert diff(read_again[1], read_again[1]).same
    (setting,) = diff(read_again[1], read_again[2]).settings
    assert (setting.name, setting.first, setting.second) == ("output: guide_scale", 12.0, 6.0)
    for place, first in ((0, None), (3, "output_crf")):
        settings = {s.name: (s.first, s.second) for s in diff(read_again[place], read_again[1]).settings}
        assert settings["output"] == (first, "output_guided")


def test_the_command(tmp_path, plain):
    saved(tmp_path, "a.pt", plain)
    saved(tmp_path, "b.safetensors", hotswap.convert(plain, "target", "guide"))
    result = CliRunner().invoke(main, ["diff", str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["same"] is False
    assert found["weights"] == []
    result = CliRunner().invoke(main, ["diff", str(tmp_path / "a.pt"), str(tmp_path / "none.pt")])
    assert result.exit_code == 1
    assert "No such file" in result.stderr
