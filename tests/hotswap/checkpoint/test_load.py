"""Weights and plans that do not fit the network that they are loaded into."""

import copy

import networks
import pytest
import torch
from saving import one_line, plain_state, same, swapped

import hotswap
from hotswap.checkpoint.load import load_weights
from hotswap.checkpoint.metadata import Metadata
from hotswap.checkpoint.read import Checkpoint
from hotswap.errors import HotswapError


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("head.bias"), "1 missing (head.bias); is this the right architecture?"),
        (lambda s: s.update(extra=torch.ones(1)), "1 not the network's (extra)"),
        (lambda s: s.update({"head.bias": torch.ones(5)}), "1 of another shape (head.bias is [5] and must be [2])"),
        (lambda s: s.update({"head.bias": torch.ones(2, dtype=torch.int8)}), "head.bias is torch.int8 and must be"),
        (
            lambda s: [s.pop(name) for name in list(s)[:5]],
            "5 missing (stem.weight, stem.bias, guide.weight and 2 more)",
        ),
        (lambda s: s.update({f"x{i}.{'y' * 500}": torch.ones(1) for i in range(50)}), "and 47 more"),
    ],
)
@pytest.mark.parametrize("learn_scale", [None, True])
def test_weights_that_do_not_fit_change_nothing(change, reason, learn_scale):
    model = swapped(learn_scale=True) if learn_scale else networks.Plain()
    before = copy.deepcopy(model.state_dict())
    state = dict(plain_state())
    change(state)
    metadata = Metadata(learned_scales={"target.guide_log_scale": torch.tensor(1.0)}) if learn_scale else None
    with pytest.raises(HotswapError) as caught:
        load_weights(model, Checkpoint("w.pth", state, metadata))
    assert reason in one_line(caught)
    assert len(str(caught.value)) < 1000
    assert same(model.state_dict(), before)


@pytest.mark.parametrize(
    ("save", "model", "reason"),
    [
        (lambda p: hotswap.save(swapped(), p), None, "does not say which network"),
        (lambda p: torch.save(plain_state(), p), None, "does not say which network"),
        (lambda p: hotswap.save(swapped(), p, "networks:Plain"), None, "a file may not choose what code runs"),
        (lambda p: hotswap.save(swapped(), p), networks.Containers(), "target 'target' is no module"),
        (lambda p: hotswap.save(swapped(), p), networks.Plain(c_out=4), "made for another network"),
        (lambda p: hotswap.save(swapped(), p), swapped(), "converted already"),
        (lambda p: torch.save(plain_state(), p), networks.Containers(), "is this the right architecture?"),
        (
            lambda p: torch.save({"net": swapped(learn_scale=True).state_dict()}, p),  # of people's own training code
            networks.Plain(),
            "has 1 parameters that a swap added (target.guide_log_scale) and does not say which swap; hotswap.apply",
        ),
    ],
)
def test_load_refuses(tmp_path, save, model, reason):
    save(tmp_path / "m.pt")
    before = None if model is None else copy.deepcopy(model.state_dict())
    with pytest.raises(HotswapError) as caught:
        hotswap.load(tmp_path / "m.pt", model)
    assert reason in one_line(caught)
    assert model is None or same(model.state_dict(), before)


def test_the_file_of_a_factory_loads_into_the_callers_network(tmp_path):
    hotswap.save(swapped(), tmp_path / "m.pt", "networks:Plain")
    assert hotswap.status(hotswap.load(tmp_path / "m.pt", networks.Plain())).plan is not None
