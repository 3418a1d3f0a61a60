"""What people do with a network after it was converted (issue 5, point 7), by either method."""

import copy
import inspect
import io

import forks
import networks
import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from networks import conv
from swap_by_hand import close, swap
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

import hotswap


@pytest.fixture
def image():
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Norms, a residual sum, a module that is called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.guide, self.target, self.later = conv(3), conv(), conv(groups=2), conv()
        self.norm, self.act = nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = self.act(self.norm(self.guide(x)) + x)
        x = self.act(self.later(self.act(self.target(x))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(params=["fx", "hooks"])
def converted(request):
    torch.manual_seed(0)
    return swap(Net(), ("target", "later"), "guide", method=request.param)


def test_both_methods_agree(image):
    torch.manual_seed(0)
    net = Net()
    fx, hooks = (swap(net, ("target", "later"), "guide", method=method) for method in ("fx", "hooks"))
    close(fx(image), hooks(image))
    for net in (fx, hooks):
        net.train()(image).sum().backward()
    for a, b in zip(fx.parameters(), hooks.parameters(), strict=True):
        close(a.grad, b.grad)
    assert torch.equal(fx.norm.num_batches_tracked, torch.tensor(1))


def test_the_state_survives_pickle(converted, image):
    buffer = io.BytesIO()
    torch.save(converted.state_dict(), buffer)
    buffer.seek(0)
    again = swap(Net(), ("target", "later"), "guide")
    again.load_state_dict(torch.load(buffer, weights_only=True))
    close(again(image), converted(image))


def test_channels_last(converted, image):
    expected = converted(image)
    other = converted.to(memory_format=torch.channels_last)
    close(other(image.to(memory_format=torch.channels_last)), expected)


def test_frozen_parts_stay_frozen(converted, image):
    converted.requires_grad_(False)
    converted.later.weight.requires_grad_(True)
    converted(image).sum().backward()
    assert {name for name, p in converted.named_parameters() if p.grad is not None} == {"later.weight"}
    converted.later.weight.requires_grad_(False)
    assert not converted(image).requires_grad


@pytest.mark.parametrize("average", [AveragedModel, lambda net: timm.utils.ModelEmaV3(net, decay=0.5)])
def test_averaged_copies(converted, image, average):
    with torch.no_grad():
        ema = average(converted)
        before = copy.deepcopy(converted)
        ema.update_parameters(converted) if isinstance(ema, AveragedModel) else ema.update(converted)
        for parameter in converted.parameters():
            parameter.mul_(1.5)
        ema.update_parameters(converted) if isinstance(ema, AveragedModel) else ema.update(converted)
        expected = copy.deepcopy(before)
        for parameter in expected.parameters():
            parameter.mul_(1.25)
        close(ema.module.eval()(image), expected(image))
    assert hotswap.status(ema.module).plan == hotswap.status(converted).plan


def _train_in_one_of_two(rank, address, method, results):
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.manual_seed(0)
    net = swap(Net(), ("target", "later"), "guide", method=method, learn_scale=True)
    parallel = nn.parallel.DistributedDataParallel(net)
    images = torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    parallel(images[2 * rank : 2 * rank + 2]).square().mean().backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in net.named_parameters()}, results)
    dist.destroy_process_group()


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_two_processes_average_their_gradients(method, tmp_path):
    results = tmp_path / "gradients.pt"
    address = f"file://{tmp_path / 'meeting'}"
    forks.both(_train_in_one_of_two, address, method, results)
    torch.manual_seed(0)
    net = swap(Net(), ("target", "later"), "guide", method=method, learn_scale=True)
    images = torch.randn(4, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    net(images).square().mean().backward()
    found = torch.load(results)
    assert found.keys() == dict(net.named_parameters()).keys()
    for name, parameter in net.named_parameters():
        close(found[name], parameter.grad)


def test_transformers_own_methods(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic"
    )
    torch.manual_seed(0)
    net = transformers.ResNetForImageClassification(config).eval()
    converted = hotswap.convert(net, guide_scale=1.0)
    # A graph would give a dict where the encoder gives an object of its own.
    assert hotswap.status(converted).plan.method == "hooks"
    image = torch.randn(1, 3, 64, 64)
    expected = converted(image).logits
    assert not torch.allclose(expected, net(image).logits)
    converted.save_pretrained(tmp_path)
    again = transformers.ResNetForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(again(image).logits, net(image).logits)
    close(hotswap.apply(again, hotswap.status(converted).plan)(image).logits, expected)
    assert converted.num_parameters() == net.num_parameters()


def test_a_timm_network_keeps_its_methods():
    net = timm.create_model("resnet18", num_classes=4).eval()
    image = torch.randn(1, 3, 64, 64)
    for method in ("fx", "hooks"):
        converted = hotswap.convert(net, guide_scale=1.0, method=method)
        features = converted.forward_features(image)
        close(converted.forward_head(features), converted(image))
        if method == "hooks":  # the graph has taken the place of forward_features alone
            maps = converted.forward_intermediates(image, indices=[4], intermediates_only=True)
            close(maps[0], features)
        converted.reset_classifier(7)
        assert converted(image).shape == (1, 7)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("methods", [("fx", "fx"), ("fx", "hooks"), ("hooks", "fx"), ("hooks", "hooks")], ids=str)
def test_more_targets_later(methods, inplace, image):
    torch.manual_seed(0)
    net = Net().eval()
    options = {"guide_scale": 0.8, "learn_scale": True, "example_inputs": image}
    once = hotswap.convert(net, "target", "guide", method=methods[0], **options)
    learned = once.target.guide_log_scale
    with torch.no_grad():
        learned.add_(0.1)
    before = once(image)
    twice = hotswap.convert(once, "later", "stem", method=methods[1], inplace=inplace, **options)
    if inplace:
        assert twice is once
        assert twice.target.guide_log_scale is learned
    else:
        close(once(image), before)
    assert [(s.target, s.guide) for s in hotswap.status(twice).plan.swaps] == [
        ("target", ("guide",)),
        ("later", ("stem",)),
    ]
    guides = {"target": "guide", "later": "stem"}
    fresh = hotswap.convert(net, ["target", "later"], guides, method="fx", **options)
    fresh.target.guide_scale = twice.target.guide_scale
    close(twice(image), fresh(image))
    assert torch.equal(hotswap.revert(twice)(image), net(image))


def test_status_prints_what_is_swapped(converted):
    status = hotswap.status(converted)
    text = str(status)
    assert all(word in text for word in ("target", "later", "guide", "0.8"))
    assert status.to_dict()["plan"]["method"] in ("fx", "hooks")
    assert str(hotswap.status(networks.Plain())) == "nothing is swapped"


class Enlarged(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.target = conv(3), conv()

    def forward(self, x):
        y = self.target(torch.relu(self.stem(x)))[:, :, ::2, ::2]
        return F.interpolate(y, scale_factor=2.0, mode="bilinear")


@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("targets", [["target"], ["resize_*"]])
def test_tracers_are_refused_in_a_line_and_the_advice_works(targets, method, image, monkeypatch):
    if method == "hooks":
        networks.enlarge_by_hooks(monkeypatch)
    net = Enlarged().eval()
    options = {"guide_scale": 2.0, "example_inputs": image, "method": method}
    swapped = hotswap.convert(net, targets, "input", **options)
    with pytest.raises(hotswap.HotswapError, match=r"cannot be traced by torch\.jit\.trace.* hotswap\.export"):
        torch.jit.trace(swapped, image)
    with pytest.raises(hotswap.HotswapError, match=r"cannot be traced by torch\.fx"):
        torch.fx.symbolic_trace(swapped)
    expected = swapped(image)
    traced = torch.fx.symbolic_trace(hotswap.revert(swapped))
    found = hotswap.convert(traced, targets, "input", **options)(image)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.jit.trace(hotswap.revert(swapped), image)(image), net(image))


# --- classes --------------------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """A target of every kind."""

    def __init__(self, width=8):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.wider = nn.Upsample(scale_factor=2, mode="bilinear")
        self.up = nn.ConvTranspose2d(width, width, 3, 2, padding=1, output_padding=1)

    def forward(self, x):
        wide = self.wider(self.pool(self.conv(self.stem(x).relu())))
        again = self.up(F.max_pool2d(wide, 2))
        return F.interpolate(F.max_pool2d(again, 2), scale_factor=2.0, mode="bilinear")


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_what_is_built_from_a_converted_class_is_plain(method):
    """As PEFT builds a low-rank layer, `type(layer)(...)`, and others a network like one at hand, `type(network)()`."""
    image = torch.rand(1, 3, 8, 8)
    targets = ["conv", "up", "pool", "wider", "resize_*"]
    net = hotswap.convert(Everything().eval(), targets, "stem", guide_scale=0.5, method=method, example_inputs=image)
    expected = net(image)
    for path, arguments in (("conv", (8, 2, 1)), ("up", (8, 4, 3)), ("pool", (3, 2, 1)), ("wider", (None, 2.0))):
        layer = net.get_submodule(path)
        built = type(layer)(*arguments)
        assert type(built) is type(Everything().get_submodule(path))
        assert hotswap.status(nn.Sequential(built)).plan is None
        assert built.double()(torch.ones(1, 8, 4, 4, dtype=torch.float64)).dtype == torch.float64
    assert inspect.signature(type(net)) == inspect.signature(Everything)
    again = type(net)(width=4)
    assert type(again) is Everything
    assert again(image).shape == (1, 4, 8, 8)
    with pytest.raises(hotswap.HotswapError, match="nothing in this network is swapped"):
        hotswap.revert(again)
    assert torch.equal(copy.deepcopy(net)(image), expected)  # which builds nothing


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_parametrisation_of_a_target_comes_off(method, when):
    image, net = torch.rand(1, 3, 8, 8), Everything().eval()

    def double():
        for path in ("conv", "up"):
            parametrize.register_parametrization(net.get_submodule(path), "weight", Doubled())

    if when == "before":
        double()
    hotswap.convert(net, ["conv", "up"], "stem", guide_scale=0.5, method=method, example_inputs=image, inplace=True)
    if when == "after":
        double()
    expected = net(image)
    for path in ("conv", "up"):
        parametrize.remove_parametrizations(net.get_submodule(path), "weight")
        assert not parametrize.is_parametrized(net.get_submodule(path))
    torch.testing.assert_close(net(image), expected)
    assert [swap.target for swap in hotswap.status(net).plan.swaps] == ["conv", "up"]
    plain = hotswap.revert(net)
    assert (type(plain.conv), type(plain.up)) == (nn.Conv2d, nn.ConvTranspose2d)
