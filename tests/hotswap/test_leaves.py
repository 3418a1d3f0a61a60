"""What is registered as not to be traced into."""

import networks
import pytest
import timm
import torch
from test_hazards import close, plain_expected, swap
from torch import nn

import hotswap
from hotswap import leaves


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch):
    monkeypatch.setattr(leaves, "_MODULES", [])
    monkeypatch.setattr(leaves, "_FUNCTIONS", [])


@pytest.fixture
def image():
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def positive(x):
    return x if x.sum() > 0 else x.abs()


class Careful(networks.Plain):
    def forward(self, x):
        return super().forward(positive(x))


def test_a_function_that_looks_at_values_is_kept_as_a_step(image):
    net = Careful().eval()
    assert hotswap.status(swap(net)).plan.method == "hooks"
    assert hotswap.register_leaf(positive) is positive
    converted = swap(net, method="fx")
    close(converted(image), plain_expected(net, positive(image)))
    close(converted(-image), plain_expected(net, positive(-image)))


def test_a_registered_module_is_not_opened(image):
    net = nn.Sequential(networks.Plain()).eval()
    assert hotswap.status(swap(net, "0.target", "0.guide")).plan.method == "fx"
    hotswap.register_leaf(networks.Plain)
    with pytest.raises(hotswap.HotswapError, match="module '0' is a Plain, which is registered as not to be traced"):
        swap(net, ["0.target"], "input", method="fx")


def test_timms_functions_are_known():
    assert set(timm.layers.get_notrace_functions()) <= set(leaves.leaf_functions())


@pytest.mark.parametrize("leaf", [nn.ReLU(), 3, int])
def test_what_is_neither_is_refused(leaf):
    with pytest.raises(hotswap.HotswapError, match="leaf must be a subclass of torch.nn.Module or a function, got"):
        hotswap.register_leaf(leaf)
