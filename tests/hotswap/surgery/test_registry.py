"""What is registered as not to be traced into."""

import networks
import pytest
import timm
import torch
from swap_by_hand import close, plain_expected, swap
from torch import nn

import hotswap
from hotswap.surgery import registry


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch):
    monkeypatch.setattr(registry, "_MODULES", [])
    monkeypatch.setattr(registry, "_FUNCTIONS", [])
    monkeypatch.setattr(registry, "_ARGUMENTS", {})


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
    assert set(timm.layers.get_notrace_functions()) <= set(registry.leaf_functions())


def test_and_those_of_a_timm_whose_layers_do_not_list_them_yet(monkeypatch):
    known = set(timm.layers.get_notrace_functions())
    monkeypatch.delattr(timm.layers, "get_notrace_functions")
    assert known
    assert known <= set(registry.leaf_functions())


@pytest.mark.parametrize("leaf", [nn.ReLU(), 3, int])
def test_what_is_neither_is_refused(leaf):
    with pytest.raises(hotswap.HotswapError, match="leaf must be a subclass of torch.nn.Module or a function, got"):
        hotswap.register_leaf(leaf)


class Modal(networks.Plain):
    def forward(self, x, mode, times=1):
        if mode == "twice":
            x = 2 * x
        return super().forward(x) * times


def test_registered_arguments_are_fixed_at_their_values(image):
    net = Modal().eval()
    with pytest.raises(hotswap.HotswapError, match="cannot be traced by torch.fx"):
        swap(net, method="fx", example_inputs=(image, "twice", 3))
    hotswap.register_concrete_args(networks.Plain)  # of a base: nothing
    hotswap.register_concrete_args(Modal, mode="twice", times=3)
    converted = swap(net, method="fx", example_inputs=(image, "twice", 3))
    close(converted(image, "twice", 3), 3 * plain_expected(net, 2 * image))
    close(converted(image, mode="twice", times=3), 3 * plain_expected(net, 2 * image))
    with pytest.raises(hotswap.HotswapError, match="mode='twice' alone, got 'once'"):
        converted(image, "once", 3)


def test_registered_arguments_of_a_base_hold_for_its_subclasses(image):
    class Derived(Modal):
        pass

    hotswap.register_concrete_args(Modal, mode="once", times=2)
    hotswap.register_concrete_args(Derived, times=5)
    converted = swap(Derived().eval(), method="fx", example_inputs=(image, "once", 5))
    assert converted(image, "once", 5).shape[0] == 2


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (Modal(), {"mode": "x"}, "kind must be a subclass of torch.nn.Module, got Modal"),
        (Modal, {"mod": "x"}, "Modal.forward has no argument 'mod'; closest: mode; it has x, mode, times"),
        (Modal, {"mode": [1]}, "mode must be None, a bool, a number or a string, got a list"),
    ],
)
def test_what_cannot_be_fixed_is_refused(kind, values, message):
    with pytest.raises(hotswap.HotswapError, match=message):
        hotswap.register_concrete_args(kind, **values)
    assert not registry._ARGUMENTS
