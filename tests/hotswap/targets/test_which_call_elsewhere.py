"""The guided call of `F.interpolate` in parts that are checkpointed, compiled, or entered past their forward."""

import copy

import pytest
import torch
import torch.nn.functional as F
from calls_alike import KINDS, RIGHT, SIZES, Helper, LoopOverMaps, Mapped, assert_right, convert, image
from code_elsewhere import to_size
from torch import nn
from torch.utils.checkpoint import checkpoint

import hotswap
from hotswap import HotswapError


class Checkpointing(Helper):
    """Its tail, or an inner module, is checkpointed in training."""

    def __init__(self, reentrant, inner=None):
        super().__init__()
        self.reentrant, self.inner = reentrant, inner

    def forward(self, x):
        part = self.tail if self.inner is None else self.inner
        return checkpoint(part, x, use_reentrant=self.reentrant) if self.training else part(x)

    def tail(self, x):
        return super().forward(x)


@pytest.mark.parametrize("kind", [Helper, Mapped], ids=lambda kind: kind.__name__)
def test_a_module_that_is_checkpointed_runs_the_same_again(kind):
    converted, gradients = convert(Checkpointing(False, kind()), [KINDS[kind]]), []
    for training in (False, True):
        converted.train(training).zero_grad()
        converted(image(34, 38)).square().sum().backward()
        gradients.append([p.grad.clone() for p in converted.inner.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_part_of_a_forward_that_is_checkpointed_is_refused(reentrant):
    converted = convert(Checkpointing(reentrant), ["resize_1"]).train()
    with pytest.raises(HotswapError, match="activation checkpointing .*checkpoint whole modules, or none"):
        converted(image().requires_grad_())
    assert_right(converted.eval(), Checkpointing(reentrant).eval())


class HelperAfterAnother(Helper):
    """A whole module is checkpointed, and the helper that it shares makes the guided call behind it."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant, self.inner = reentrant, AroundAHelper()

    def forward(self, x):
        y = checkpoint(self.inner, x, use_reentrant=self.reentrant) if self.training else self.inner(x)
        return to_size(self.head(self.first(y)), x, **RIGHT)


class AroundAHelper(nn.Module):
    def forward(self, x):
        return to_size(F.avg_pool2d(x, 2), x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_module_may_share_a_helper_with_a_guided_call(reentrant, by_hooks):
    net = HelperAfterAnother(reentrant).eval()
    converted = convert(net, ["resize_2"])
    assert_right(converted, net)
    expected, x = converted(image(34, 38)), image(34, 38).requires_grad_()
    found = converted.train()(x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()


class Splits(Helper):
    """With values that decide, on which a graph breaks, in the forward and in a method."""

    def forward(self, x):
        fine, short = self.maps(x)
        if x.mean() > 10:
            fine = fine + 1
        return self.last(self.head(fine + to_size(short, fine)), x)

    def last(self, y, x):
        if x.mean() > 10:
            y = y + 1
        return to_size(y, x, **RIGHT)


@pytest.mark.parametrize("kind", [Helper, Splits], ids=lambda kind: kind.__name__)
def test_compiled_it_guides_the_same_call(kind):
    torch._dynamo.reset()
    converted = convert(kind().eval(), [KINDS.get(kind, "resize_1")])
    compiled = torch.compile(converted, fullgraph=kind is not Splits, backend="eager", dynamic=False)
    assert_right(compiled, kind().eval(), SIZES[1:2])
    program = torch.export.export(converted, (image(34, 38),), strict=False) if kind is Helper else None
    if program is not None:
        assert_right(program.module(), kind().eval(), SIZES[1:2])


def test_turns_of_a_loop_are_not_compiled():
    torch._dynamo.reset()
    converted = convert(LoopOverMaps().eval(), ["resize_2"])
    with pytest.raises(HotswapError, match="runs outside the graph that torch.compile made for its guide 'input'"):
        torch.compile(converted, backend="eager")(image())
    torch.compile(converted.first, backend="eager")
    assert_right(converted, LoopOverMaps().eval(), SIZES[:1])


class Parts(Helper):
    """Its forward in two methods, of which a user may call one."""

    def forward(self, x):
        return self.scores(self.features(x), x) if x.dim() == 4 else x

    def features(self, x):
        fine, short = self.maps(x)
        return fine + to_size(short, fine)

    def scores(self, fine, x):
        return to_size(self.head(fine), x, **RIGHT)


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_a_method_that_makes_the_guided_call_past_forward_is_an_error(method, request):
    if method == "hooks":
        request.getfixturevalue("by_hooks")
    net, x = Parts().eval(), image(34, 38)
    converted = convert(net, ["resize_1"])
    assert_right(converted, net, SIZES[1:2])
    fine = converted.features(x)  # which makes another call by the same helper
    assert torch.equal(fine, net.features(x))
    with pytest.raises(
        HotswapError, match="'F.interpolate 0 in the network' is guided .* Parts.scores calls it past"
    ):
        converted.scores(fine, x)
    with pytest.raises(HotswapError, match="calls it past"):
        copy.deepcopy(converted).scores(fine, x)
    assert_right(converted, net, SIZES[1:2])
    assert torch.equal(hotswap.revert(converted).scores(fine, x), net.scores(fine, x))


class Enlarging(nn.Module):
    """The module that makes a call, as decoders and heads are."""

    def forward(self, coarse, size):
        return F.interpolate(coarse, size, mode="bilinear")


class AroundIt(nn.Module):
    """Calls the module that makes the call."""

    def __init__(self):
        super().__init__()
        self.coarse, self.decoder = nn.Conv2d(3, 2, 3, 4, 1), Enlarging()

    def forward(self, x):
        return self.decoder(self.coarse(x), x.shape[2:])


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_a_module_called_past_the_network_that_guides_it_is_an_error(method, request):
    if method == "hooks":
        request.getfixturevalue("by_hooks")
    net, x = AroundIt().eval(), image(34, 38)
    converted = convert(net, ["resize_1"])
    coarse = net.coarse(x)
    for decoder in (converted.decoder, copy.deepcopy(converted.decoder)):
        with pytest.raises(HotswapError, match=r"'F.interpolate 0 in decoder'"):
            decoder(coarse, x.shape[2:])
    assert not torch.equal(converted(x), net(x))
    reverted = hotswap.revert(converted)
    assert type(reverted.decoder) is Enlarging
    assert torch.equal(reverted.decoder(coarse, x.shape[2:]), net.decoder(coarse, x.shape[2:]))
