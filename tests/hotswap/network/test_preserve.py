"""A run that only looks leaves nothing in what networks keep beside their parameters."""

import pytest
import torch
import torch.nn.functional as F
from networks import conv
from torch import nn

import hotswap


class Caching(nn.Module):
    """Keeps what it computed from a parameter, as timm's attention does with its biases."""

    def __init__(self):
        super().__init__()
        self.guide, self.target = conv(3), conv()
        self.bias = nn.Parameter(torch.randn(8, 1, 1))
        self.cache, self.seen, self.last = {}, [], None

    def forward(self, x):
        if "bias" not in self.cache:
            self.cache["bias"] = self.bias * 2
        self.seen.append(x)
        self.last = x
        return self.target(F.relu(self.guide(x)) + self.cache["bias"])


@pytest.fixture
def image():
    return torch.randn(1, 3, 8, 8)


@pytest.mark.parametrize("method", ["fx", "hooks"])
@torch.no_grad()
def test_converting_leaves_caches_empty(method, image):
    model = Caching().eval()
    swapped = hotswap.convert(model, "target", "guide", method=method, guide_scale=0, example_inputs=image)
    for network in (model, swapped):
        assert network.cache == {}
        assert network.seen == []
        assert network.last is None
    assert torch.allclose(swapped(image), model(image))


@torch.no_grad()
def test_a_full_cache_is_not_frozen_into_the_graph(image):
    model = Caching().eval()
    model(image)
    kept = model.cache["bias"]
    with pytest.raises(hotswap.HotswapError, match="computed in an earlier run"):
        hotswap.convert(model, "target", "guide", method="fx", example_inputs=image)
    assert model.cache["bias"] is kept
    swapped = hotswap.convert(model, "target", "guide", example_inputs=image)
    assert hotswap.status(swapped).plan.method == "hooks"
    swapped.cache.clear()
    swapped.bias.zero_()
    model.cache.clear()
    model.bias.zero_()
    assert torch.allclose(swapped(image), model(image))


class TwoFrames(nn.Module):
    """Two frames stacked for one encoder, and the first alone for another, as in optical flow."""

    def __init__(self):
        super().__init__()
        self.both = nn.Sequential(conv(3), conv(stride=2), conv(stride=2))
        self.first = nn.Sequential(conv(3), conv(stride=2), conv(stride=2))

    def forward(self, a, b):
        return self.both(torch.cat([a, b])).chunk(2)[1] + self.first(a)


def test_automatic_targets_have_the_batch_size_of_their_guide(image):
    plan = hotswap.plan(TwoFrames(), example_inputs=(image, image))
    assert [(swap.target, swap.guide) for swap in plan.swaps] == [("both.2", ("both.1",))]


class GivesItselfHooks(nn.Module):
    """Does so when it is first called, and notes that it did, as networks of transformers do."""

    def __init__(self):
        super().__init__()
        self.guide, self.target = conv(3), conv()
        self.hooked, self.guide.caught = False, []

    def forward(self, x):
        if not self.hooked:
            self.guide.register_forward_hook(lambda module, args, output: module.caught.append(output))
            self.hooked = True
        self.guide.caught.clear()
        self.guide(x)
        (found,) = self.guide.caught
        return self.target(F.relu(found))


@pytest.mark.parametrize("called_before", [False, True])
@torch.no_grad()
def test_hooks_a_network_gives_itself_are_there_once(called_before, image):
    model = GivesItselfHooks().eval()
    if called_before:
        model(image)
    swapped = hotswap.convert(model, "target", "guide", guide_scale=0, example_inputs=image)
    assert len(model.guide._forward_hooks) == called_before
    assert torch.allclose(swapped(image), model(image))
