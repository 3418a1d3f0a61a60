"""Modules between a guide and its targets stay called: what acts on their calls acts as in the plain network."""

import copy
import functools
import io
import pickle
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import forks
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from networks import conv
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    CheckpointWrapper,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.func import functional_call, stack_module_state

import hotswap
from hotswap.surgery.containers import CODES

IMAGE = torch.rand(2, 3, 12, 14, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A residual block, its activation in place."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = conv(), conv(), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.act(self.second(self.act(self.first(x))) + x)


class Stages(nn.Module):
    """Blocks in stages."""

    guide, target = "early.0.first", "late.1.second"

    def __init__(self):
        super().__init__()
        self.stem, self.early, self.late = conv(3), nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block())

    def forward(self, x):
        return self.late(self.early(self.stem(x)))


Pair = namedtuple("Pair", "coarse fine")  # noqa: PYI024 (what networks return)


class Passing(nn.Module):
    """Gets tensors in structures and by keyword, and returns them in others; both may be read by who comes later."""

    def __init__(self, made):
        super().__init__()
        self.block, self.made = Block(), made

    def forward(self, maps, *, gate=None, how="bilinear"):
        x = self.block(maps["fine"])
        coarse = F.avg_pool2d(x, 2) + F.interpolate(maps["others"][0], size=(6, 7), mode=how)
        return self.made(coarse, x if gate is None else x * gate)


def as_list(coarse, fine):
    return [coarse, fine]


def as_tuple(coarse, fine):
    return coarse, fine


def as_dict(coarse, fine):
    return {"coarse": coarse, "fine": fine}


def as_ordered_dict(coarse, fine):
    return OrderedDict(coarse=coarse, fine=fine)


class Structures(nn.Module):
    guide, target = "one.block.first", "two.block.second"

    def __init__(self, made):
        super().__init__()
        self.stem, self.one, self.two = conv(3), Passing(made), Passing(Pair)

    def forward(self, x):
        x = self.stem(x)
        made = self.one({"fine": x, "others": (x,)}, gate=x.sigmoid())
        first, second = made.values() if isinstance(made, dict) else made
        pair = self.two({"fine": second, "others": [first]})
        return pair.fine.mean((2, 3)) + pair.coarse.sum((2, 3))


class Twice(nn.Module):
    """One block that is called three times, at two sizes, with one guide."""

    guide, target = "stem", "block.second"

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.gate = conv(3), Block(), nn.Sigmoid()

    def forward(self, x):
        x = self.gate(self.stem(x))
        halved = self.block(F.avg_pool2d(x, 2))
        return self.block(self.block(x)) + F.interpolate(halved, scale_factor=2)


class Shared(nn.Module):
    """A module under two paths, one of them outside the block that calls it."""

    guide, target = "stem", "block.second"

    def __init__(self):
        super().__init__()
        self.stem, self.block = conv(3), Block()
        self.again = self.block.first

    def forward(self, x):
        return self.again(self.block(self.stem(x)))


class Modes(Stages):
    """Another code in training."""

    def forward(self, x):
        x = self.early(self.stem(x))
        return self.late(x * 2 if self.training else x)


class Constants(nn.Module):
    """A tensor that a block's code makes itself."""

    class Scaled(Block):
        def forward(self, x):
            return super().forward(x * torch.tensor([1.5]))

    guide, target = "one.first", "two.second"

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = conv(3), self.Scaled(), self.Scaled()

    def forward(self, x):
        return self.two(self.one(self.stem(x)))


NETWORKS = {
    "stages": Stages,
    **{made.__name__: functools.partial(Structures, made) for made in (as_list, as_tuple, as_dict, as_ordered_dict)},
    "twice": Twice,
    "shared": Shared,
    "modes": Modes,
    "constants": Constants,
}
METHODS = pytest.mark.parametrize("method", ["fx", "hooks"])


def plain(name="stages"):
    torch.manual_seed(1)
    return NETWORKS[name]().eval()


def swapped(name="stages", method="fx", **options):
    net = plain(name)
    options = {"guide_scale": 2.0, "example_inputs": IMAGE} | options
    return hotswap.convert(net, net.target, net.guide, method=method, **options)


def events(net, image=IMAGE):
    """What hooks on every module see: before, after, and in the backward."""
    seen, handles = [], []
    for path, module in net.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda m, args, path=path: seen.append(("before", path, len(args)))),
            module.register_forward_hook(lambda m, args, out, path=path: seen.append(("after", path, type(out)))),
        ]
    net(image).sum().backward()
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", NETWORKS)
@METHODS
def test_hooks_see_the_calls_of_the_plain_network(name, method):
    net = swapped(name, method)
    assert events(net) == events(plain(name))
    assert method == "hooks" or any(CODES in module.__dict__ for module in net.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_both_methods_give_the_same_numbers_and_gradients(name):
    nets = [swapped(name, method) for method in ("fx", "hooks")]
    for mode in (False, True):
        images = [IMAGE.clone().requires_grad_() for _ in nets]
        outputs = [net.train(mode)(image) for net, image in zip(nets, images, strict=True)]
        torch.testing.assert_close(*outputs)
        assert not torch.allclose(outputs[0], plain(name).train(mode)(IMAGE))
        for output in outputs:
            output.square().sum().backward()
        torch.testing.assert_close(images[0].grad, images[1].grad)
    reverted = hotswap.revert(nets[0])
    torch.testing.assert_close(reverted.eval()(IMAGE), plain(name)(IMAGE), rtol=0, atol=0)
    assert [type(m) for m in reverted.modules()] == [type(m) for m in plain(name).modules()]
    assert [set(vars(m)) for m in reverted.modules()] == [set(vars(m)) for m in plain(name).modules()]


@METHODS
def test_a_hook_changes_what_a_module_returns(method):
    net = swapped(method=method)
    net.early.register_forward_hook(lambda *_: torch.zeros(2, 8, 12, 14))
    net.late[1].register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    seen = {}
    net.late[1].second.register_forward_hook(lambda m, args, out: seen.update(input=args[0]))
    net(IMAGE)
    late = plain().late
    torch.testing.assert_close(seen["input"], F.relu(late[1].first(late[0](torch.zeros(2, 8, 12, 14)) + 1)))


@METHODS
def test_gradients_of_a_container_are_seen(method):
    """Grad-CAM's way."""
    net, gradients = swapped(method=method), []
    net.late.register_full_backward_hook(lambda m, given, got: gradients.append(got[0]))
    output = net(IMAGE)
    output.square().sum().backward()
    torch.testing.assert_close(gradients[0], 2 * output)


def checkpointed(net, *, reentrant):
    kind = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    wrapper = functools.partial(checkpoint_wrapper, checkpoint_impl=kind)
    apply_activation_checkpointing(net, wrapper, check_fn=lambda module: isinstance(module, Block))
    assert sum(isinstance(module, CheckpointWrapper) for module in net.modules()) == 4
    return net


@METHODS
def test_activation_checkpointing_runs_blocks_again(method):
    nets, runs = [swapped(method=method), checkpointed(swapped(method=method), reentrant=False)], []
    handles = [
        m.register_forward_pre_hook(lambda *_: runs.append(1)) for m in nets[1].modules() if isinstance(m, Block)
    ]
    for net in nets:
        net(IMAGE).square().sum().backward()
    assert len(runs) == 2 * len(handles) == 8
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for net in nets:
        torch.testing.assert_close(hotswap.revert(net)(IMAGE), plain()(IMAGE))


@pytest.mark.parametrize("guide", ["stem", "early.0.first"])
@METHODS
def test_reentrant_checkpointing_loses_no_gradient_without_a_word(method, guide):
    net = hotswap.convert(plain(), "late.1.second", guide, guide_scale=2.0, method=method)
    output = checkpointed(net, reentrant=True)(IMAGE.clone().requires_grad_())
    with pytest.raises(hotswap.HotswapError, match="use_reentrant=False"):
        output.sum().backward()


@METHODS
def test_wrappers_around_a_block_and_a_forward_replaced_on_it_act(method):
    net, expected = swapped(method=method), swapped(method=method)(IMAGE)
    before = net.late[1].forward
    net.late[1].forward = lambda *args, **kwargs: before(*args, **kwargs) * 2  # as accelerate's hooks do
    torch.testing.assert_close(net(IMAGE), expected * 2)
    del net.late[1].forward
    net.early[1] = nn.Sequential(OrderedDict(wrapped=net.early[1]))  # without guide or target
    torch.testing.assert_close(net(IMAGE), expected)


@METHODS
@pytest.mark.parametrize("places", [("early.0", "late.1"), ("late.1",)])
def test_a_block_is_compiled_alone(method, places):
    torch._dynamo.reset()
    net, expected = swapped(method=method), swapped(method=method)(IMAGE)
    for place in places:
        net.get_submodule(place).compile(backend="aot_eager")
    if method == "hooks" and "early.0" not in places:
        with pytest.raises(hotswap.HotswapError, match="compiled apart from its guide"):
            net(IMAGE)
        return
    torch.testing.assert_close(net(IMAGE), expected)
    net(IMAGE).sum().backward()


@METHODS
def test_networks_swapped_alike_have_the_same_classes(method):
    nets = [swapped(method=method) for _ in range(2)]
    assert [type(m) for m in nets[0].modules()] == [type(m) for m in nets[1].modules()]
    parameters, buffers = stack_module_state(nets)
    base = copy.deepcopy(nets[0])
    outputs = torch.vmap(lambda p, b: functional_call(base, (p, b), (IMAGE,)))(parameters, buffers)
    torch.testing.assert_close(outputs, torch.stack([net(IMAGE) for net in nets]))


@pytest.mark.parametrize("name", ["stages", "modes", "constants", "as_ordered_dict"])
@METHODS
def test_a_swapped_network_is_pickled(name, method):
    net, file = swapped(name, method), io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(IMAGE), net(IMAGE), rtol=0, atol=0)
        assert [type(m) for m in other.modules()] == [type(m) for m in net.modules()]
        assert str(hotswap.status(other)) == str(hotswap.status(net))
        torch.testing.assert_close(hotswap.revert(other)(IMAGE), plain(name)(IMAGE), rtol=0, atol=0)


def test_a_new_instance_of_a_swapped_class_is_plain():
    net = swapped()
    for module in (net.late[1], net.late[1].second, net):
        kind = type(module)
        new = kind(8, 8, 3) if isinstance(module, nn.Conv2d) else kind()
        assert type(new) in (Block, nn.Conv2d, Stages)


@pytest.mark.parametrize("change", ["appended", "shortened", "exchanged", "copied out"])
def test_a_changed_list_of_blocks_acts_or_is_refused(change):
    net, hooked = swapped(method="fx"), swapped(method="hooks")
    if change == "appended":
        net.late.append(nn.Sigmoid())
        hooked.late.append(nn.Sigmoid())
        torch.testing.assert_close(hooked(IMAGE), swapped()(IMAGE).sigmoid())
    elif change == "shortened":
        del net.early[1], hooked.early[1]
        hooked(IMAGE)
    elif change == "exchanged":
        net.late[1] = Block()
    else:
        block = copy.deepcopy(net.late[1])
        with pytest.raises(hotswap.HotswapError, match=r"was called without its guide.*method=\"hooks\""):
            block(torch.rand(1, 8, 4, 4))
        return
    named = "target 'late.1.second', module 'late.1'" if change == "exchanged" else "the modules of '(late|early)'"
    for act in (lambda: net(IMAGE), lambda: hotswap.status(net)):
        with pytest.raises(hotswap.HotswapError, match=f"replaced since the swap: {named}"):
            act()
    hotswap.revert(net)(IMAGE)


class Lists(Stages):
    """Lists whose modules the code calls one by one: in the network's own code, and in a module that stays as it is."""

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = nn.ModuleList([conv(), nn.ReLU()])

        def forward(self, x):
            for step in self.steps:
                x = step(x)
            return x

    guide, target = "early.0.first", "late.1.second"

    def __init__(self):
        super().__init__()
        self.chain, self.heads = self.Chain(), nn.ModuleDict({"a": nn.ModuleList([conv(), conv()])})

    def forward(self, x):
        x = self.chain(super().forward(x))
        for head in self.heads["a"]:
            x = head(x)
        return x


def test_lists_act_where_the_code_that_calls_them_is_the_networks():
    net = Lists().eval()
    converted = hotswap.convert(net, net.target, net.guide, guide_scale=2.0, method="fx")
    expected = converted(IMAGE)
    converted.chain.steps.append(nn.Sigmoid())  # in code that was not rewritten
    assert not torch.allclose(converted(IMAGE), expected)
    converted.heads["a"].append(nn.Sigmoid())
    with pytest.raises(hotswap.HotswapError, match=r"replaced since the swap: the modules of 'heads\.a'"):
        converted(IMAGE)


@dataclass
class Maps:
    fine: torch.Tensor


class Swallowed(Stages):
    """Its blocks return what only their own code can take apart."""

    class Returning(Block):
        def forward(self, x):
            return Maps(super().forward(x))

    guide, target = "first.first", "second.second"

    def __init__(self):
        super().__init__()
        self.first, self.second = self.Returning(), self.Returning()

    def forward(self, x):
        return self.second(self.first(self.stem(x)).fine).fine


def test_a_module_that_cannot_stay_called_says_so_when_it_is_hooked():
    net = Swallowed().eval()
    converted = hotswap.convert(net, net.target, net.guide, guide_scale=2.0, method="fx")
    converted(IMAGE)
    hotswap.verify(converted, [IMAGE])
    handle = converted.second.register_forward_hook(lambda *_: None)
    with pytest.raises(hotswap.HotswapError, match=r"module 'second' has hooks, .* method=\"hooks\""):
        converted(IMAGE)
    handle.remove()
    converted(IMAGE)


def _sharded(rank, folder, method):
    dist.init_process_group("gloo", init_method=f"file://{folder}/{method}", rank=rank, world_size=2)
    net, reference = swapped(method=method), swapped(method=method)
    target = net.late[1].second
    for module in (target, *net.early, *net.late):
        fully_shard(module)
    fully_shard(net)
    output, expected = net(IMAGE), reference(IMAGE)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    expected.sum().backward()
    for a, b in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad.full_tensor(), b.grad)
    hotswap.revert(net, inplace=True)
    assert all(isinstance(block, FSDPModule) for block in (net, *net.early, *net.late, target))
    assert not hasattr(target, "swap")
    torch.testing.assert_close(net(IMAGE), plain()(IMAGE))
    dist.destroy_process_group()


@METHODS
def test_blocks_are_sharded(method, tmp_path):
    """FSDP2, two processes."""
    forks.both(_sharded, tmp_path, method)
