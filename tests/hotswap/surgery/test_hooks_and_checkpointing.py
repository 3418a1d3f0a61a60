"""method="hooks" under activation checkpointing."""

import pytest
import torch
from by_hooks import GUIDE, TARGETS, Stages, by_hooks, nothing_is_kept, staged
from networks import conv
from swap_by_hand import close
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import hotswap


class Checkpointed(Stages):
    """Runs parts of itself again in the backward."""

    def __init__(self, parts, reentrant, frozen=False):
        super().__init__()
        self.parts, self.reentrant = parts, reentrant
        if frozen:
            for module in (self.stem, self.first[0]):
                module.requires_grad_(False)

    def forward(self, x):
        for name, part in self.named_children():
            x = checkpoint(part, x, use_reentrant=self.reentrant) if name in self.parts else part(x)
        return x


def gradients(net, x):
    for parameter in net.parameters():
        parameter.grad = None
    net(x).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [("second",), ("first",), ("first", "second", "third")])
def test_checkpointed_parts_read_the_guide_of_their_pass(parts, image):
    torch.manual_seed(3)
    converted = by_hooks(Checkpointed(parts, reentrant=False), TARGETS, GUIDE)
    expected = gradients(staged(), image)
    for _ in range(2):
        found = gradients(converted, image)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            close(gradient, expected[name])
        assert nothing_is_kept(converted)


def test_two_passes_before_one_backward_of_checkpointed_parts_are_refused_where_guides_could_be_confused(image):
    converted = by_hooks(Checkpointed(("second",), reentrant=False), TARGETS, GUIDE)
    with pytest.raises(hotswap.HotswapError, match="2 passes wait for their backward.*call backward after each pass"):
        (converted(image) + converted(-image)).sum().backward()
    whole = by_hooks(Checkpointed(("first", "second"), reentrant=False), ("first.2",), GUIDE)
    (whole(image) + whole(-image)).sum().backward()  # the guide is run again too
    assert nothing_is_kept(whole)


def test_reentrant_checkpoints(image):
    torch.manual_seed(3)
    whole = by_hooks(Checkpointed(("first",), reentrant=True), ("first.2",), GUIDE)
    torch.manual_seed(3)
    plain = by_hooks(Stages(), ("first.2",), GUIDE)
    expected = gradients(plain, image)
    for name, gradient in gradients(whole, image).items():
        close(gradient, expected[name])
    assert nothing_is_kept(whole)
    apart = by_hooks(Checkpointed(("second",), reentrant=True), TARGETS, GUIDE)
    with pytest.raises(hotswap.HotswapError, match="reentrant activation checkpointing.*use_reentrant=False"):
        gradients(apart, image)


def test_checkpoint_around_the_network(image):
    converted = staged()
    expected = gradients(converted, image)
    for reentrant in (False, True):
        found = gradients(lambda_module(converted, reentrant), image)
        for name, gradient in found.items():
            close(gradient, expected[name.removeprefix("net.")])
        assert nothing_is_kept(converted)


def lambda_module(net, reentrant):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return checkpoint(self.net, x.requires_grad_(), use_reentrant=reentrant)

    return Around()


def test_checkpoint_sequential(image):
    net = nn.Sequential(conv(3), nn.ReLU(), conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
    converted = by_hooks(net, ("4", "6"), "2")
    expected = gradients(converted, image)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = converted

        def forward(self, x):
            return checkpoint_sequential(self.net, 3, x, use_reentrant=False)

    for name, gradient in gradients(Around(), image).items():
        close(gradient, expected[name.removeprefix("net.")])
