"""One recipe from its file to its result: what is written, and that a stopped run goes on as if it had not been."""

import json
import math
import random
import re
import resource
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import tiny_recipe
import torch
from accelerate.utils import DistributedType
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_recipe import Noise, finetune, invoke, same, weights, written
from torch import nn
from torch.utils.tensorboard import SummaryWriter

import hotswap
from hotswap.errors import HotswapError
from recipes import checkpointing, engine, tensorboard, training
from recipes.reading import ALONE, read
from recipes.training import Trainer

ARMS = {"plain": {}, "swapped": {"swaps": [{"targets": "second", "guide": "input"}], "calibration": {"batches": 1}}}
EVERYTHING = {
    "swaps": [
        {"targets": "second", "guide": "input", "learn_scale": True},
        {"targets": "resize_*", "guide": "input"},
    ],
    "calibration": {"deviation": 0.2, "batches": 2},
    "accumulation": 2,
    "optimiser": {"name": "sgd", "lr": 0.05, "momentum": 0.8, "factors": {"scales": 3, "head": 0.5}, "clip": 1.0},
    "schedule": {"name": "cosine", "warmup": 2},
    "ema": 0.8,
    "evaluation": {"every": 2, "batch_size": 2},
    "model": {
        "name": "tiny_recipe:Small",
        "options": {"norm": True},
        "mean": [0.5, 0.5, 0.5],
        "std": [0.2, 0.2, 0.3],
    },
}
REFINED = {
    "swaps": [{"targets": "output"}],
    "calibration": {"deviation": 0.4, "batches": 1},
    "optimiser": {"lr": 0.01, "factors": {"refinement_guide": 10, "refinement": 3}},
}


# Two threads that share out networks this small mostly wait for each other.
pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_recipe_with_arms_leaves_networks_results_a_table_and_a_picture(tmp_path):
    path, out = written(tmp_path, arms=ARMS), tmp_path / "out"
    done = invoke("finetune", path, "--output-dir", out)
    assert done.exit_code == 0, done.exception
    assert "plain" in done.stdout
    assert "swapped" in done.stdout
    assert "boundary_iou_3" in done.stdout
    assert {f.name for f in out.iterdir()} == {"plain", "swapped", "predictions.png"}
    results = {arm: json.loads((out / arm / "result.json").read_text()) for arm in ARMS}
    for arm, result in results.items():
        assert result["steps"] == result["steps_planned"] == 6
        assert [entry["step"] for entry in result["history"]] == [0, 6]
        assert result["metrics"] == result["history"][-1]["metrics"]
        assert result["metrics"].keys() == {"miou", "boundary_iou_3", "boundary_iou_5"}
        assert result["best"]["metrics"]["miou"] == max(e["metrics"]["miou"] for e in result["history"])
        assert result["recipe"] == read(path)[arm].model_dump(mode="json")
        assert result["versions"]["torch"] == torch.__version__
        assert result["git"]["commit"]
        assert result["timings"]["training_seconds"] > 0
        loaded = hotswap.load(out / arm / "last.safetensors", model=tiny_recipe.Small())
        assert (hotswap.status(loaded).plan is not None) == (arm == "swapped") == result["swaps"]["swapped"]
        found = json.loads(
            invoke("evaluate", path, "--arm", arm, "--checkpoint", out / arm / "last.safetensors", "--json").stdout
        )
        assert found == result["metrics"]
    # Both start from the same weights and see the same data; the swap alone tells them apart.
    assert not same(weights(out / "plain"), weights(out / "swapped"))


def test_losses_and_scores_are_there_for_tensorboard(tmp_path):
    finetune(written(tmp_path, evaluation={"every": 3}), tmp_path / "out")
    log = EventAccumulator(str(tmp_path / "out" / "tensorboard")).Reload()
    assert [event.step for event in log.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in log.Scalars("validation/miou")] == [0, 3, 6]


@contextmanager
def full_disk():
    """No file can grow beyond 300 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_curves_that_cannot_be_written_are_one_line(tmp_path, capfd):
    (tmp_path / "tensorboard").write_text("a file")
    cannot = r"cannot write in '.*tensorboard': "
    with pytest.raises(HotswapError, match=cannot), tensorboard.curves(tmp_path, 0, drawn=True):
        pass
    with full_disk(), pytest.raises(HotswapError, match=f"{cannot}File too large"):
        draw(tmp_path / "out")
    with pytest.raises(HotswapError, match=f"{cannot}as it closes"):
        draw(tmp_path / "closing", closing=OSError("as it closes"))
    with pytest.raises(ZeroDivisionError):  # what was raised first is what is told
        draw(tmp_path / "both", closing=OSError("as it closes"), raising=ZeroDivisionError)
    assert capfd.readouterr().err == ""


def draw(folder, closing=None, raising=None):
    plain = SummaryWriter.close

    def close(board):
        plain(board)
        if closing is not None:
            raise closing

    with patch.object(SummaryWriter, "close", close), tensorboard.curves(folder, 0, drawn=True) as add:
        for step in range(100):
            add("loss", 1.0, step)
        if raising is not None:
            raise raising


def test_json_is_all_there_is_on_stdout(tmp_path):
    done = invoke(*tiny_recipe.arguments(written(tmp_path), tmp_path / "out", "--json"))
    assert json.loads(done.stdout) == {"": json.loads((tmp_path / "out" / "result.json").read_text())}


def test_an_arm_can_start_where_another_ended(tmp_path):
    arms = {"start": {}, "more": {"model": {"checkpoint": "arm:start"}, "steps": 2}}
    finetune(written(tmp_path, arms=arms), tmp_path / "out")
    first, second = (json.loads((tmp_path / "out" / arm / "result.json").read_text()) for arm in arms)
    assert second["history"][0]["metrics"] == first["metrics"]
    done = invoke("evaluate", tmp_path / "recipe.yaml", "--arm", "more")
    assert done.exit_code == 1
    assert "where arm 'start' ended, which has not been run here; pass --checkpoint" in done.stderr


def test_a_recipe_puts_a_crf_behind_its_network(tmp_path):
    path, out = written(tmp_path, **REFINED, steps=2), tmp_path / "out"
    finetune(path, out, "swaps=[{targets: output_crf}]", "calibration.deviation=auto")
    refinement = hotswap.status(hotswap.load(out / "last.safetensors", model=tiny_recipe.Small())).plan.output
    assert (refinement.kind, refinement.guide_scale) == ("crf", 12)  # the units of Lab are known
    assert all(refinement.gate)


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(tmp_path):
    path = written(tmp_path)
    for name, more in (("a", []), ("b", []), ("c", ["seed=1"])):
        torch.manual_seed(len(name + str(more)))  # whatever came before must not matter
        finetune(path, tmp_path / name, *more)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.mark.parametrize(
    ("stop", "changes"),
    [(1, {}), (4, {}), (3, EVERYTHING), (3, REFINED)],
    ids=["early", "late", "everything", "refined"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(stop, changes, tmp_path):
    path = written(tmp_path, **changes)
    finetune(path, tmp_path / "whole")
    finetune(path, tmp_path / "stopped", max_steps=stop)
    assert json.loads((tmp_path / "stopped" / "result.json").read_text())["steps"] == stop
    torch.manual_seed(99)
    finetune(path, tmp_path / "stopped", resume=True)
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    whole, stopped = (json.loads((tmp_path / x / "result.json").read_text()) for x in ("whole", "stopped"))
    assert stopped["metrics"] == whole["metrics"]
    assert stopped["swaps"] == whole["swaps"]
    loaded = hotswap.load(tmp_path / "whole" / "last.safetensors", model=tiny_recipe.Small(norm="model" in changes))
    plan = hotswap.status(loaded).plan
    assert (plan is not None and plan.output is not None and all(plan.output.gate)) == (changes is REFINED)


TWICE = {"evaluation": {"every": 2}, "steps": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finetune(written(folder, **TWICE), folder / "out")
    return weights(folder / "out")


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("best.safetensors", 0),
        *((name, number) for name in ("last.safetensors", "state.pt") for number in (0, 1)),
        ("result.json", 0),
    ],
)
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "ctrl-c"]
)
def test_whatever_stops_a_run_in_any_write_it_goes_on_to_the_same_weights(
    name, number, error, tmp_path, monkeypatch, whole
):
    path, out = written(tmp_path, **TWICE), tmp_path / "stopped"
    replace, seen = tiny_recipe.Path.replace, []

    def fail(temporary, final):  # the last moment of a write
        if final.name == name:
            seen.append(final)
            if len(seen) == number + 1:
                raise error
        return replace(temporary, final)

    with monkeypatch.context() as patch:
        patch.setattr(tiny_recipe.Path, "replace", fail)
        done = invoke(*tiny_recipe.arguments(path, out))
    assert len(seen) == number + 1
    if isinstance(error, OSError):
        assert done.exit_code == 1
        assert done.stderr == f"Error: cannot write '{out / name}': No space left on device\n"
    else:
        assert done.exit_code == 1
        assert "--resume goes on with it" in done.stderr
    assert not list(out.glob(".hotswap*"))  # nothing half-written
    finetune(path, out, resume=True)
    assert same(weights(out), whole)


def test_ctrl_c_in_a_step_ends_in_one_line_and_keeps_what_was_saved(tmp_path, monkeypatch):
    path, out = written(tmp_path, save_every=2), tmp_path / "out"
    step = Trainer._step

    def interrupted(self, items):
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self, items)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupted)
        done = invoke(*tiny_recipe.arguments(path, out))
    assert done.exit_code == 1
    assert checkpointing.read(out / "state.pt").trainer["step"] == 2
    assert not (out / "result.json").exists()
    finetune(path, out, resume=True)
    finetune(path, tmp_path / "whole")
    assert same(weights(out), weights(tmp_path / "whole"))


def test_a_loss_that_is_no_number_stops_the_run_with_its_step_and_the_last_good_checkpoint(tmp_path, monkeypatch):
    read_item = Noise.__getitem__
    count = iter(range(1000))

    def poisoned(self, index):
        image, labels = read_item(self, index)
        return (image * math.nan if len(self) == 8 and next(count) >= 5 * 4 else image), labels

    path, out = written(tmp_path, save_every=2), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Noise, "__getitem__", poisoned)
        done = invoke(*tiny_recipe.arguments(path, out))
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: the loss is nan at step 5; lower optimiser.lr")
    assert f"the last good checkpoint is '{out / 'last.safetensors'}'" in done.stderr
    assert checkpointing.read(out / "state.pt").trainer["step"] == 4
    assert all(x.isfinite().all() for x in weights(out).values())


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path):
    for name, batch, times in (("one", 8, 1), ("four", 2, 4)):
        model = {"name": "tiny_recipe:Small", "options": {"dropout": 0.0}}
        finetune(written(tmp_path, batch_size=batch, accumulation=times, model=model), tmp_path / name)
    one, four = weights(tmp_path / "one"), weights(tmp_path / "four")
    for key, x in one.items():
        torch.testing.assert_close(four[key], x, rtol=0, atol=1e-5)


def test_what_is_frozen_stays_and_the_average_lags_behind(tmp_path):
    path = written(tmp_path, freeze=["head", "first.bias"], ema=0.5, steps=2)
    finetune(path, tmp_path / "out")
    start = engine.building.plain(read(path)[ALONE]).state_dict()
    found = weights(tmp_path / "out")
    assert {key for key, x in found.items() if torch.equal(x, start[key])} == {
        "head.weight",
        "head.bias",
        "first.bias",
    }
    last = checkpointing.read(tmp_path / "out" / "state.pt").trainer["model"]
    assert not torch.equal(last["second.weight"], found["second.weight"])
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["parameters"]["all"] - result["parameters"]["trained"] == 4 + 8 + 2


def test_processes_that_load_data_change_nothing(tmp_path):
    path = written(tmp_path)
    finetune(path, tmp_path / "none")
    finetune(path, tmp_path / "two", "workers=2")
    assert same(weights(tmp_path / "none"), weights(tmp_path / "two"))


class Shaky(Noise):
    """Random in every way a data set can be."""

    def __getitem__(self, index):
        image, labels = super().__getitem__(index)
        return image + torch.rand(()) + random.random() + float(np.random.rand()), labels  # noqa: NPY002, S311


def test_what_data_sets_draw_is_fixed_by_seed_and_step_too(tmp_path):
    data = {"train": {"name": "test_engine:Shaky"}, "validation": {"name": "test_engine:Shaky"}}
    path = written(tmp_path, data=data)
    finetune(path, tmp_path / "whole")
    finetune(path, tmp_path / "stopped", max_steps=3)
    finetune(path, tmp_path / "stopped", resume=True)
    assert same(weights(tmp_path / "stopped"), weights(tmp_path / "whole"))
    finetune(path, tmp_path / "loaded", "workers=2")
    assert same(weights(tmp_path / "loaded"), weights(tmp_path / "whole"))


def test_epochs_are_passes_over_the_data(tmp_path):
    finetune(written(tmp_path, steps=None, epochs=3, batch_size=4), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "result.json").read_text())["steps"] == 3 * 8 // 4


def test_mixed_precision_trains_and_saves_full_precision_weights(tmp_path):
    changes = {"swaps": ARMS["swapped"]["swaps"], "mixed_precision": "bf16", "ema": 0.5, "evaluation": {"every": 3}}
    path = written(tmp_path, **changes)
    finetune(path, tmp_path / "half", max_steps=3)
    finetune(path, tmp_path / "half", resume=True)
    finetune(path, tmp_path / "full", "mixed_precision=null")
    half, full = weights(tmp_path / "half"), weights(tmp_path / "full")
    assert {x.dtype for x in half.values()} == {torch.float32}
    assert not same(half, full)
    for key, x in full.items():
        torch.testing.assert_close(half[key], x, rtol=0, atol=0.05)


def test_networks_split_over_processes_are_refused(monkeypatch):
    monkeypatch.setattr(training.Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(HotswapError, match="train whole networks on every process, and not with FSDP"):
        training.start()


def test_a_folder_with_a_run_is_not_written_over(tmp_path):
    path, out = written(tmp_path), tmp_path / "out"
    finetune(path, out, max_steps=1)
    done = invoke(*tiny_recipe.arguments(path, out))
    assert done.exit_code == 1
    assert "already holds a run: --resume goes on with it, or name another folder" in done.stderr
    done = invoke(*tiny_recipe.arguments(path, out, "--resume", "--set", "optimiser.lr=0.5"))
    assert done.exit_code == 1
    assert "was begun with optimiser.lr 0.01, and the recipe now says 0.5" in done.stderr


def test_a_run_that_is_done_is_not_done_again(tmp_path):
    path, out = written(tmp_path), tmp_path / "out"
    finetune(path, out)
    before = (out / "last.safetensors").stat().st_mtime_ns
    finetune(path, out, resume=True)
    assert (out / "last.safetensors").stat().st_mtime_ns == before


def test_a_damaged_state_is_refused(tmp_path):
    path, out = written(tmp_path), tmp_path / "out"
    finetune(path, out, max_steps=1)
    (out / "state.pt").write_bytes((out / "state.pt").read_bytes()[:100])
    done = invoke(*tiny_recipe.arguments(path, out, "--resume"))
    assert done.exit_code == 1
    assert f"cannot read '{out / 'state.pt'}'" in done.stderr
    assert "damaged" in done.stderr


class Labels(Noise):
    """Labels that are no class of the network."""

    def __getitem__(self, index):
        image, labels = super().__getitem__(index)
        return image, labels + 5


class Bare(nn.Module):
    """Gives no map."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, image):
        return {"boxes": self.scale * image}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "tiny_recipe:Smal"}}, "has no 'Smal'; closest: Small"),
        ({"model": {"name": "tiny_recipe:Small", "options": {"clases": 2}}}, "unexpected keyword argument 'clases'"),
        ({"model": {"name": "tiny_recipe:Small", "checkpoint": "none.pt"}}, "cannot read 'none.pt'"),
        ({"model": {"name": "test_engine:Bare"}}, r"must give a map \[B, C, H, W\]"),
        (
            {"data": {"train": {"name": "scene"}, "validation": {"name": "scenes"}}},
            "no data set 'scene'; closest: scenes",
        ),
        (
            {"data": {"train": {"name": "scenes", "options": {"count": 0}}, "validation": {"name": "scenes"}}},
            "data set 'scenes' cannot be made: count must be at least 1",
        ),
        (
            {"data": {"train": {"name": "test_engine:Labels"}, "validation": {"name": "test_engine:Labels"}}},
            "labels must be from 0 to 1, the network's classes, or 255 where nothing counts, got 5 to 6",
        ),
        ({"batch_size": 9}, "batch_size must be from 1 to 8"),
        ({"freeze": ["secnd"]}, "no parameter is in 'secnd'; closest: second"),
        ({"freeze": ["*"]}, "must have a parameter that requires a gradient, got none"),
        ({"optimiser": {"factors": {"hed": 2}}}, "no parameter is in 'hed'; closest: head"),
        ({"swaps": [{"targets": "thrid"}]}, "thrid"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_one_line(changes, message, tmp_path):
    done = invoke(*tiny_recipe.arguments(written(tmp_path, **changes), tmp_path / "out"))
    assert done.exit_code == 1, done.exception
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr), done.stderr
