"""Learning rates: over time, and of the parts of a network."""

import pytest
import torch
from tiny_recipe import Small

import hotswap
from hotswap.errors import HotswapError
from hotswap.rates import freeze, parameters_of
from recipes.config import Optimiser, Schedule
from recipes.optimisation import optimiser, rate

IMAGE = torch.rand(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("schedule", "unit", "rates"),
    [
        ({}, 1, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ({"warmup": 3}, 1, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ({"name": "step", "at": (4, 8)}, 1, [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]),
        ({"name": "step", "at": (2,), "factor": 0.5}, 3, [1, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]),
        ({"name": "poly"}, 1, [(1 - s / 10) ** 0.9 for s in range(10)]),
        ({"name": "poly", "power": 1, "warmup": 2}, 1, [1 / 3, 2 / 3, *(1 - s / 8 for s in range(8))]),
        ({"name": "cosine"}, 1, [1, 0.9755, 0.9045, 0.7939, 0.6545, 0.5, 0.3455, 0.2061, 0.0955, 0.0245]),
    ],
    ids=str,
)
def test_rates_over_time(schedule, unit, rates):
    found = [rate(Schedule(**schedule), step, 10, unit) for step in range(10)]
    assert found == pytest.approx(rates, abs=1e-4)


@pytest.fixture(scope="module")
def swapped():
    model = hotswap.convert(Small(), "second", "first", learn_scale=True, gate=True, example_inputs=IMAGE)
    return hotswap.convert(model, "resize_*", "input", learn_scale=True, example_inputs=IMAGE)


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("swapped", ["second.weight", "second.bias"]),
        ("guide", ["first.weight", "first.bias"]),
        ("scales", 2),
        ("gates", ["second.guide_gate"]),
        ("head", ["head.weight", "head.bias"]),
        ("head.bias", ["head.bias"]),
        ("*.bias", ["first.bias", "second.bias", "head.bias"]),
        ("re:(first|head)", ["first.weight", "first.bias", "head.weight", "head.bias"]),
    ],
)
def test_parts_of_a_network(swapped, part, names):
    found = parameters_of(swapped, part, IMAGE)
    assert len(found) == names if isinstance(names, int) else found == names


@pytest.mark.parametrize("part", ["scond", "nothing.*", "re:x"])
def test_a_part_that_is_not_there_is_refused(swapped, part):
    with pytest.raises(HotswapError, match="no parameter is in"):
        parameters_of(swapped, part, IMAGE)


@pytest.mark.parametrize("part", ["swapped", "guide", "scales", "gates"])
def test_a_plain_network_has_no_parts_of_a_swap(part):
    assert parameters_of(Small(), part, IMAGE) == []


def test_nothing_is_frozen_where_a_part_is_not_there():
    model = Small()
    with pytest.raises(HotswapError, match="'secnd'; closest: second"):
        freeze(model, ["head", "secnd"], IMAGE)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "kind", "defaults"),
    [
        ({}, torch.optim.AdamW, {"weight_decay": 0.01}),
        ({"name": "adam"}, torch.optim.Adam, {"weight_decay": 0.0}),
        ({"name": "sgd"}, torch.optim.SGD, {"weight_decay": 0.0, "momentum": 0.9}),
        (
            {"name": "sgd", "momentum": 0.0, "weight_decay": 0.3},
            torch.optim.SGD,
            {"weight_decay": 0.3, "momentum": 0.0},
        ),
    ],
    ids=str,
)
def test_each_optimiser_and_its_settings(settings, kind, defaults):
    made = optimiser(Small(), Optimiser(lr=0.5, **settings), IMAGE)
    assert type(made) is kind
    (group,) = made.param_groups
    assert group["lr"] == 0.5
    assert {key: group[key] for key in defaults} == defaults


def test_the_first_part_a_parameter_is_in_gives_its_factor(swapped):
    names = {id(p): name for name, p in swapped.named_parameters()}
    factors = {"scales": 10.0, "gates": 10.0, "second.bias": 3.0, "swapped": 2.0, "*": 0.5}
    groups = optimiser(swapped, Optimiser(lr=0.1, factors=factors), IMAGE).param_groups
    found = {names[id(p)]: group["lr"] for group in groups for p in group["params"]}
    assert found.keys() == set(names.values())
    assert found["second.bias"] == pytest.approx(0.3)
    assert found["second.weight"] == pytest.approx(0.2)
    assert found["first.weight"] == pytest.approx(0.05)
    assert sorted(found.values())[-3:] == [1.0, 1.0, 1.0]  # both scales, and the gate
