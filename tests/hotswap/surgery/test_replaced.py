"""Modules that are replaced after a swap: the next call, `status` and `save` name them, and `revert` works."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hotswap


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, image):
        return F.interpolate(self.head(self.body(self.stem(image))), scale_factor=2, mode="bilinear")


IMAGE = torch.rand(1, 3, 12, 14)


def swapped(method, guide="stem.1"):
    torch.manual_seed(0)
    return hotswap.convert(Net().eval(), ["body.0", "head"], guide, guide_scale=3.0, method=method)


def replace_target(net):
    own = net.head
    net.head = nn.Conv2d(4, 2, 3, padding=1)
    net.head.load_state_dict(own.state_dict())


def remove_target(net):
    del net.body[0]


def synchronise(net):
    nn.SyncBatchNorm.convert_sync_batchnorm(net)


def exchange_activation(net):
    net.stem[2] = nn.SiLU()


def copy_block(net):
    net.body = copy.deepcopy(net.body)


def copy_guide(net):
    net.stem = copy.deepcopy(net.stem)


CASES = [
    (replace_target, "target 'head'"),
    (synchronise, "guide 'stem.1'"),
    (exchange_activation, "activation 'stem.2'"),
    (copy_block, "target 'body.0'"),
    (copy_guide, "guide 'stem.1'"),
    (remove_target, "target 'body.0'"),
]


@torch.no_grad()
@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize(("change", "name"), CASES)
def test_by_hooks_what_was_replaced_is_named(tmp_path, change, name, called):
    net = swapped("hooks")
    if called:
        net(IMAGE)
    change(net)
    for use in (
        lambda: net(IMAGE),
        lambda: hotswap.status(net),
        lambda: hotswap.save(net, tmp_path / "net.safetensors"),
    ):
        with pytest.raises(hotswap.HotswapError, match=f"replaced since the swap: .*{name}.*hotswap.revert"):
            use()
    assert not list(tmp_path.iterdir())
    plain = hotswap.revert(net)
    expected = Net().eval()
    change(expected)
    expected.load_state_dict(plain.state_dict())
    if change is not synchronise:  # which runs on a GPU alone
        torch.testing.assert_close(plain(IMAGE), expected(IMAGE))


@torch.no_grad()
@pytest.mark.parametrize("change", [exchange_activation, copy_block, copy_guide])
def test_by_fx_whatever_stands_in_a_place_is_called(change):
    net = swapped("fx")
    before = net(IMAGE)
    change(net)
    assert torch.equal(net(IMAGE), before) == (change is not exchange_activation)
    assert [swap.target for swap in hotswap.status(net).plan.swaps] == ["body.0", "head"]


@pytest.mark.parametrize("change", [replace_target, remove_target])
def test_by_fx_targets_that_were_replaced_are_named(tmp_path, change):
    net = swapped("fx")
    change(net)
    for use in (lambda: hotswap.status(net), lambda: hotswap.save(net, tmp_path / "net.safetensors")):
        with pytest.raises(hotswap.HotswapError, match="replaced since the swap: target '(head|body.0)'"):
            use()
    plain = hotswap.revert(net)
    assert type(plain) is Net


@torch.no_grad()
def test_enlargements_that_were_replaced_are_named():
    for method in ("fx", "hooks"):
        net = nn.Sequential(nn.Conv2d(3, 2, 3, 2, 1), nn.Upsample(scale_factor=2, mode="bilinear")).eval()
        net = hotswap.convert(net, "resize_*", "input", guide_scale=1.0, method=method, example_inputs=IMAGE)
        net(IMAGE)
        net[1] = nn.Upsample(scale_factor=2, mode="bilinear")
        with pytest.raises(hotswap.HotswapError, match="replaced since the swap: target '1'"):
            hotswap.status(net)
        assert torch.equal(hotswap.revert(net)(IMAGE), net[1](net[0](IMAGE)))


@torch.no_grad()
def test_what_is_wrapped_is_not_replaced():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    net = swapped("hooks")
    before = net(IMAGE)
    net.body = checkpoint_wrapper(net.body)
    net.stem[1] = nn.Sequential(net.stem[1])
    assert torch.equal(net(IMAGE), before)
    assert torch.equal(copy.deepcopy(net)(IMAGE), before)
