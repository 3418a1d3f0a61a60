"""Recipe files are checked to the end before anything is loaded, and a mistake is one clear line."""

import re
from pathlib import Path

import pytest
from tiny_recipe import invoke, written

from hotswap.errors import HotswapError
from recipes import config, reading
from recipes.reading import ALONE, read

OWN = sorted((Path(reading.__file__).parent).glob("*.yaml"))


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_the_recipes_that_come_along_are_valid_and_found_by_name(path):
    assert read(path) == read(path.stem)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 3}, "there is no key 'stepz'; closest: steps"),
        ({"swaps": [{"target": "a"}]}, r"there is no key 'swaps.0.target'; closest: targets"),
        ({"task": {"name": "segmentation", "ignor": 0}}, "there is no key 'task.ignor'; closest: ignore"),
        (
            {"task": {"name": "depht"}},
            "task.name must be one of 'segmentation', 'depth', 'flow', got 'depht'; closest",
        ),
        ({"task": {}}, "task.name is missing"),
        ({"task": "depth"}, "task must be a mapping, got 'depth'"),
        ({"model": {}}, "model.name is missing"),
        ({"steps": "ten"}, "steps must be a whole number, got 'ten'"),
        ({"steps": 1.5}, "steps must be a whole number, got 1.5"),
        ({"steps": True}, "steps must be a whole number, got True"),
        ({"steps": 0}, "steps must be greater than or equal to 1, got 0"),
        ({"epochs": 3}, "give steps or epochs, one of the two"),
        ({"steps": None}, "give steps or epochs, one of the two"),
        ({"optimiser": {"lr": -1}}, "optimiser.lr must be greater than or equal to 0, got -1"),
        ({"optimiser": {"lr": float("nan")}}, "optimiser.lr must be a finite number"),
        (
            {"optimiser": {"momentum": 0.5}},
            "optimiser: momentum is of sgd alone, and the name is adamw; leave it out",
        ),
        ({"schedule": {"name": "cosin"}}, "schedule.name must be .*, got 'cosin'; closest: cosine"),
        ({"schedule": {"name": "step"}}, "schedule: at must say when the rate drops"),
        ({"schedule": {"power": 2}}, "schedule: power is of schedule poly alone, and the name is constant"),
        ({"swaps": [{"guide": 3}]}, "swaps.0.guide must be text or a list or a mapping, got 3"),
        (
            {"swaps": [{"method": "hook"}]},
            "swaps.0.method must be 'auto', 'fx' or 'hooks', got 'hook'; closest: hooks",
        ),
        ({"model": {"name": "x", "mean": [0, 0, 0]}}, "model: mean and std must be given together"),
        ({"arms": {"a b": {}}}, "arms.a b: an arm's name is that of a folder"),
        ({"arms": {"a": {"stepz": 3}}}, r"\(arm a\): there is no key 'stepz'; closest: steps"),
        ({"arms": {"a": 3}}, "arms.a must be a mapping of what it changes, got 3"),
        ({"arms": {}}, "arms must be a mapping from names to what they change"),
        (
            {"arms": {"a": {"model": {"checkpoint": "arm:b"}}, "b": {}}},
            r"arms.a: model.checkpoint must name an earlier arm \(there is none\), got 'b'",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_with_the_file_and_the_key(changes, message, tmp_path):
    path = written(tmp_path, **changes)
    with pytest.raises(HotswapError, match=message) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    done = invoke("finetune", path, "--output-dir", tmp_path / "run")
    assert done.exit_code == 1
    assert not (tmp_path / "run").exists()  # nothing was begun


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: [", "must hold a recipe as YAML"),
        ("steps: 1\nsteps: 2", "the key 'steps' is there twice"),
        ("- steps", "must hold a recipe, that is keys and values"),
        ("!!python/object/apply:os.system ['true']", "must hold a recipe as YAML"),
    ],
)
def test_what_is_no_recipe_is_refused(text, message, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(HotswapError, match=message):
        read(path)


def test_a_recipe_that_is_not_there_is_told_by_the_nearest_name(tmp_path):
    with pytest.raises(HotswapError, match="there is no recipe 'quickstar'; closest: quickstart"):
        read("quickstar")
    with pytest.raises(HotswapError, match="No such file"):
        read(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("optimiser.lr=1e-4", lambda r: r.optimiser.lr, 1e-4),
        ("swaps.1.footprint=4", lambda r: r.swaps[1].footprint, 4),
        ("swaps.0.targets=[a, b]", lambda r: r.swaps[0].targets, ("a", "b")),
        ("ema=0.9", lambda r: r.ema, 0.9),
        ("mixed_precision=no", lambda r: r.mixed_precision, "no"),
        ("data.train.options.root=/there", lambda r: r.data.train.options["root"], "/there"),
    ],
)
def test_a_recipe_can_be_changed_from_the_command_line(override, key, value, tmp_path):
    changed = read(written(tmp_path, swaps=[{}, {}]), [override])[ALONE]
    assert key(changed) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set must be key=value"),
        ("steps=[", "the value must be YAML"),
        ("swaps.5.guide=x", "'5' must be a place in a list of 1, from 0"),
        ("steps.now=3", "there is no key 'now' in 6"),
        ("optimiser.lrr=3", "there is no key 'optimiser.lrr'; closest: lr"),
    ],
)
def test_a_wrong_change_is_refused(override, message, tmp_path):
    with pytest.raises(HotswapError, match=message):
        read(written(tmp_path, swaps=[{}]), [override])


def test_arms_change_the_recipe_and_leave_the_rest(tmp_path):
    arms = {"plain": {"swaps": []}, "slow": {"optimiser": {"lr": 0.01}}}
    plain, slow = read(written(tmp_path, optimiser={"lr": 0.1, "clip": 2.0}, swaps=[{}], arms=arms)).values()
    assert (plain.swaps, len(slow.swaps)) == ((), 1)
    assert (plain.optimiser.lr, slow.optimiser.lr, slow.optimiser.clip) == (0.1, 0.01, 2.0)


def test_an_arm_that_is_not_there_is_refused(tmp_path):
    arms = read(written(tmp_path, arms={"plain": {}, "swapped": {}}))
    assert reading.arm(arms, None) is arms["swapped"]
    assert reading.arm(arms, "plain") is arms["plain"]
    with pytest.raises(HotswapError, match="there is no arm 'plane'; closest: plain"):
        reading.arm(arms, "plane")


PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()


@pytest.mark.parametrize("text", re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
def test_recipes_in_the_docs_are_valid(text, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(text)
    assert set(read(path)) == {"plain", "guided"}


def parts(model=config.Recipe):
    """A recipe's model and those in it."""
    inner = {part for field in model.model_fields.values() for part in reading._models_in(field.annotation)}
    return {model}.union(*map(parts, inner))


@pytest.mark.parametrize("part", sorted(parts(), key=str), ids=lambda part: part.__name__)
def test_every_key_is_in_the_docs(part):
    for key in part.model_fields:
        assert re.search(rf"`[\w.]*\b{key}\b", PAGE), key


def test_the_refusal_in_the_docs_is_the_one_given(tmp_path):
    said = re.search(r"Error: my.yaml(?: \(arm \w+\))?: (.*)", PAGE)[1]
    with pytest.raises(HotswapError, match=re.escape(said)):
        read(written(tmp_path), ["optimiser.learning_rate=0.1"])
