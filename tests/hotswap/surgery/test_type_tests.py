"""Code that asks for a type takes the branch that it takes in the running network, around both kinds of targets."""

import copy
import numbers
from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from networks import conv
from torch import nn
from torch.utils.checkpoint import checkpoint

import hotswap
from hotswap.surgery.self_check import DiffersError


class TwoOfIt(nn.Module):
    def forward(self, x):
        return (x, x) if self.training else x


class Asking(nn.Module):
    """Adds a skip connection where its answer about `skip` is yes."""

    def __init__(self, ask):
        super().__init__()
        self.ask = ask
        self.stem, self.middle, self.target = conv(3, stride=2), conv(stride=2), conv(8, 2)
        self.norm, self.branch = nn.BatchNorm2d(8), TwoOfIt()

    def forward(self, x):
        skip = self.norm(self.stem(x)).relu()
        y = F.interpolate(self.middle(skip), scale_factor=2, mode="bilinear")
        if self.ask(self, x, skip):
            y = y + skip
        return F.interpolate(self.target(y), scale_factor=2, mode="bilinear")


def matches(skip):
    match skip:
        case torch.Tensor():
            return True
    return False


# What a graph can answer: these are traced.
KNOWN = {
    "tensor": lambda net, x, skip: isinstance(skip, torch.Tensor),
    "input": lambda net, x, skip: isinstance(x, torch.Tensor),
    "is_tensor": lambda net, x, skip: torch.is_tensor(skip),
    "__class__": lambda net, x, skip: skip.__class__ is torch.Tensor,
    "match": lambda net, x, skip: matches(skip),
    "Size": lambda net, x, skip: isinstance(skip.shape, torch.Size),
    "size()": lambda net, x, skip: isinstance(skip.size(), tuple),
    "int": lambda net, x, skip: isinstance(skip.shape[-1], int),
    "Number": lambda net, x, skip: isinstance(skip.shape[-1] * 2, numbers.Number),
    "float": lambda net, x, skip: isinstance(skip.shape[-1] / 2, float),
    "rank": lambda net, x, skip: len(skip.shape) == 4,
    "sizes": lambda net, x, skip: len(list(skip.shape[2:])) == 2,
    "no sequence": lambda net, x, skip: not isinstance(skip, list | tuple),
    "no mapping": lambda net, x, skip: not isinstance(skip, Mapping),
    "no parameter": lambda net, x, skip: not isinstance(skip, nn.Parameter),
    "parameter": lambda net, x, skip: isinstance(net.middle.weight, nn.Parameter),
    "hasattr": lambda net, x, skip: hasattr(skip, "shape") and not hasattr(skip, "tensors"),
    "by mode": lambda net, x, skip: isinstance(net.branch(skip), tuple) is net.training,
}
# What it cannot, as nothing of Python's is asked or what is asked depends on sizes or values: these are left to hooks.
UNKNOWN = {
    "type is": lambda net, x, skip: type(skip) is torch.Tensor,
    "issubclass": lambda net, x, skip: issubclass(type(skip), torch.Tensor),
    "callable": lambda net, x, skip: not callable(skip),
    "dtype is": lambda net, x, skip: skip.dtype is torch.float32,
    "by dtype": lambda net, x, skip: {torch.float32: True}.get(skip.dtype, False),
    "grad_fn": lambda net, x, skip: skip.grad_fn is None,
    "size": lambda net, x, skip: skip.shape[-1] == 8,
    "dim": lambda net, x, skip: skip.dim() == 4,
    "floating": lambda net, x, skip: skip.is_floating_point(),
    "legacy type": lambda net, x, skip: isinstance(skip, torch.FloatTensor | list),
    "checkpoint": lambda net, x, skip: isinstance(checkpoint(F.relu, skip, use_reentrant=True), torch.Tensor),
    "as_tensor": lambda net, x, skip: isinstance(torch.as_tensor(skip), torch.Tensor),
}
TARGETS = {"convolution": ("target", "stem"), "enlargement": ("resize_*", "input")}


def plain(ask):
    torch.manual_seed(0)
    return Asking(ask).eval()


@torch.no_grad()
def assert_is(converted, net):
    for training in (False, True):
        for size in ((16, 16), (24, 40)):
            x = torch.rand(2, 3, *size)
            ours, theirs = (copy.deepcopy(model).train(training)(x) for model in (converted, net))
            torch.testing.assert_close(ours, theirs, msg=f"{training}, {size}")


def by(converted):
    made = hotswap.status(converted).plan
    hooked = any("not by fx" in note for note in made.notes)
    return "hooks" if hooked or made.method == "hooks" else "fx"


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("ask", KNOWN)
def test_what_a_type_is_is_known(ask, targets):
    net = plain(KNOWN[ask])
    converted = hotswap.convert(net, *TARGETS[targets], guide_scale=0.0, check=False)
    assert by(converted) == "fx"
    assert_is(converted, net)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("ask", UNKNOWN)
def test_what_is_not_known_is_left_to_hooks(ask, targets):
    net = plain(UNKNOWN[ask])
    example = torch.rand(1, 3, 16, 16)
    converted = hotswap.convert(net, *TARGETS[targets], guide_scale=0.0, example_inputs=example)
    assert by(converted) == "hooks"
    if ask != "grad_fn":  # which is another in training
        assert_is(converted, net)


@pytest.mark.parametrize("ask", UNKNOWN)
def test_fx_alone_refuses_what_is_not_known(ask):
    with pytest.raises(hotswap.HotswapError, match='method="hooks"'):
        hotswap.convert(plain(UNKNOWN[ask]), "target", "stem", method="fx", example_inputs=torch.rand(1, 3, 16, 16))


def test_hooks_need_no_answers():
    for ask in (KNOWN["tensor"], UNKNOWN["type is"]):
        net = plain(ask)
        assert_is(hotswap.convert(net, "target", "stem", guide_scale=0.0, method="hooks"), net)


class ListOrNot(Asking):
    def forward(self, x):
        if isinstance(x, torch.Tensor):
            x = [x]
        return self.target(self.stem(x[0]))


def test_an_answer_about_an_argument_holds_for_later_calls():
    net, image = ListOrNot(None).eval(), torch.rand(1, 3, 16, 16)
    converted = hotswap.convert(net, "target", "stem", guide_scale=0.0, method="fx")
    torch.testing.assert_close(converted(image), net(image))
    with pytest.raises(hotswap.HotswapError, match="rewritten for a tensor as x, got"):
        converted([image])


class OfItsOwn(torch.Tensor):
    """A subclass, as MONAI's MetaTensor is."""


def test_tensors_of_a_class_of_their_own_are_left_to_hooks():
    net = plain(lambda net, x, skip: isinstance(x, OfItsOwn))
    example = torch.rand(1, 3, 16, 16).as_subclass(OfItsOwn)
    with pytest.raises(hotswap.HotswapError, match="not known without running the network"):
        hotswap.convert(net, "target", "stem", method="fx", example_inputs=example)


@torch.no_grad()
def test_asking_changes_nothing_in_the_network():
    """What modules give is seen by running them, and these count, draw and write."""

    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return F.dropout(x, training=True)

    net = plain(KNOWN["tensor"])
    net.middle = nn.Sequential(net.middle, Writes())
    state, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    hotswap.convert(net.train(), "target", "stem", method="fx")
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_check_alone_catches_a_wrong_branch():
    with pytest.raises(DiffersError, match="output is off by"):
        hotswap.convert(plain(UNKNOWN["type is"]), "target", "stem", method="fx")
    unchecked = hotswap.convert(plain(UNKNOWN["type is"]), "target", "stem", method="fx", check=False)
    assert by(unchecked) == "fx"


@torch.jit.script
def scripted(x):
    return x * torch.sigmoid(x)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


@pytest.mark.parametrize(
    "function",
    [scripted, Rounded.apply, torch.no_grad()(torch.relu)],
    ids=["scripted", "with a gradient of its own", "without"],
)
def test_what_a_graph_would_compute_without_its_gradient_is_left_to_hooks(function):
    """And so is what C++ takes for a tensor, which would crash."""

    class Calling(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.target = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)

        def forward(self, x):
            return self.target(function(self.stem(x)))

    torch.manual_seed(0)
    net, image = Calling(), torch.rand(1, 3, 16, 16)
    converted = hotswap.convert(net, "target", "stem", guide_scale=0)
    for each in (net, converted):
        each(image).square().sum().backward()
    assert by(converted) == "hooks"
    for ours, theirs in zip(converted.parameters(), net.parameters(), strict=True):
        none = torch.zeros_like(theirs)
        torch.testing.assert_close(
            none if ours.grad is None else ours.grad, none if theirs.grad is None else theirs.grad
        )


@torch.no_grad()
def test_code_that_switches_autocast_is_left_to_hooks():
    class Exact(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.target = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)

        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return self.target(self.stem(x.float()))

    net, image = Exact(), torch.rand(1, 3, 16, 16)
    converted = hotswap.convert(net, "target", "stem", guide_scale=0)
    assert by(converted) == "hooks"
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(converted(image), net(image))
