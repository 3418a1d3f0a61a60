"""What a graph would do otherwise than the code it was made from is not made a graph of."""

import random

import networks
import pytest
import torch
import torch.nn.functional as F
from networks import conv
from swap_by_hand import close
from torch import nn

import hotswap


@pytest.fixture
def image():
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.target = conv(3), conv()
        self.register_buffer("calls", torch.zeros(()))

    def features(self, x):
        return F.relu(self.stem(x))

    def forward(self, x):
        return self.target(self.features(x))


class Counts(Base):
    def forward(self, x):
        if self.training:
            self.calls += 1
        return super().forward(x)


class Averages(Base):
    def forward(self, x):
        y = self.features(x)
        self.calls.mul_(0.9).add_(y.detach().mean(), alpha=0.1)
        return self.target(y)


class CountsThenLooks(Base):
    def forward(self, x):
        self.calls += 1
        y = self.features(x)
        return self.target(y) if y.mean() > -1 else y


class AddsUp(Base):
    def forward(self, x):
        y = self.features(x)
        total = torch.zeros(())
        total += y.mean()
        return self.target(y) * total


class SetsItem(Base):
    def forward(self, x):
        y = self.features(x)
        total = torch.ones(2)
        total[0] = y.mean()
        return self.target(y) * total.sum()


class DropsLayers(Base):
    def forward(self, x):
        y = self.features(x)
        if not self.training or random.random() < 0.5:  # noqa: S311
            y = y + 1
        return self.target(y)


class AddsNoise(Base):
    def forward(self, x):
        return self.target(self.features(x) + torch.randn(8, 1, 1))


def state(net):
    return {name: x.clone() for name, x in net.state_dict().items()}


@pytest.mark.parametrize("kind", [Counts, Averages, CountsThenLooks, AddsUp, SetsItem, DropsLayers, AddsNoise])
def test_not_traced(kind, image):
    net = kind().train()
    before, drawn = state(net), (random.getstate(), torch.get_rng_state())
    with pytest.raises(hotswap.HotswapError, match="cannot be traced by torch.fx"):
        hotswap.plan(net, "target", "stem", method="fx", example_inputs=image)
    converted = hotswap.convert(net, "target", "stem", guide_scale=0, example_inputs=image)
    assert hotswap.status(converted).plan.method == "hooks"
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert random.getstate() == drawn[0]
    assert torch.equal(torch.get_rng_state(), drawn[1])
    for _ in range(3):
        random.seed(0)
        torch.manual_seed(0)
        expected = net(image)
        random.seed(0)
        torch.manual_seed(0)
        close(converted(image), expected)
    assert torch.equal(converted.calls, net.calls)


class Defaults(Base):
    def forward(self, pixels=None, mask=None, scale=1.0):
        y = self.target(self.features(pixels))
        y = F.interpolate(F.avg_pool2d(y, 2), scale_factor=2.0, mode="bilinear")
        return y if mask is None else y * mask


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_an_input_with_a_default_can_guide_and_goes_by_its_name(method, image):
    net = Defaults().eval()
    options = {"guide_scale": 1.0, "example_inputs": image, "method": method}
    converted = hotswap.convert(net, ["target", "resize_*"], "input", **options)
    found = converted(image)
    assert not torch.allclose(found, net(image))
    close(converted(pixels=image), found)
    with pytest.raises(hotswap.HotswapError, match=r"rewritten for (a tensor as pixels, got None|scale=.* alone)"):
        converted(image, scale=2.0)
    by_hooks = hotswap.convert(net, "target", "input", **options | {"method": "hooks"})
    mask = torch.rand(2, 1, 12, 10)
    close(by_hooks(mask=mask, pixels=image), by_hooks(image) * mask)


class Losing(Base):
    """Labels come in training alone, behind flags that nobody gives."""

    def forward(self, pixels, flag=None, labels=None):
        y = self.target(self.features(pixels))
        y = F.interpolate(F.avg_pool2d(y, 2), scale_factor=2.0, mode="bilinear")
        return y if labels is None else (F.cross_entropy(y, labels), y)


@pytest.mark.parametrize("targets", [["target"], ["resize"], ["target", "resize"]])
@pytest.mark.parametrize("batch", ["tuple", "mapping"])
def test_converted_with_labels_it_runs_with_and_without_them(targets, batch, image):
    net, labels = Losing().eval(), torch.randint(8, (2, 12, 10))
    given = (image, None, labels) if batch == "tuple" else {"pixels": image, "labels": labels}
    swapped = hotswap.convert(net, targets, "input", calibrate_on=[given], space="rgb")
    assert any("every call would then need labels" in note for note in hotswap.status(swapped).plan.notes)
    loss, scores = swapped(image, labels=labels)
    assert not torch.allclose(scores, net(image))
    close(loss, F.cross_entropy(scores, labels))
    assert torch.equal(swapped(image), scores)


@pytest.mark.parametrize("targets", ["target", "resize"])
def test_converted_without_labels_it_says_how_to_call_it_with_them(targets, image):
    net, labels = Losing().eval(), torch.randint(8, (2, 12, 10))
    swapped = hotswap.convert(net, targets, "input", guide_scale=1.0, example_inputs=image)
    said = (
        r"for labels=None alone, got a tensor; .* example_inputs, or .* calibrate_on, that have a tensor for labels$"
    )
    with pytest.raises(hotswap.HotswapError, match=said):
        swapped(image, labels=labels)
    by_fx = hotswap.convert(net, "target", "stem", method="fx", example_inputs=(image, None, labels), guide_scale=1.0)
    assert by_fx(image, labels=labels)[1].shape == (2, 8, 12, 10)
    with pytest.raises(hotswap.HotswapError, match="rewritten for a tensor as labels, got None"):
        by_fx(image)


class Switched(Base):
    """Its forward is called with another value than its argument's default."""

    def forward(self, x, flag=True, how="plain"):
        y = self.target(self.features(x))
        return y * 2 if flag or how == "plain" else y


class Switching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Switched()

    def forward(self, x):
        return self.inner(x, False, how="other")


def test_arguments_with_defaults_are_traced_at_what_they_are_called_with(image):
    net = Switching().eval()
    options = {"guide_scale": 0.0, "example_inputs": image, "method": "fx"}
    close(hotswap.convert(net, "inner.target", "inner.stem", **options)(image), net(image))
    close(net.inner(image, False, "other") * 2, net.inner(image))
    swapped = hotswap.convert(net.inner, "target", "input", **options | {"example_inputs": (image, False, "other")})
    close(swapped(image, False, "other"), net(image))
    with pytest.raises(hotswap.HotswapError, match="rewritten for flag=False alone, got True"):
        swapped(image)


class InALoop(nn.Module):
    """A block holds a swapped convolution with its guide, and the guide of an enlargement outside."""

    def __init__(self):
        super().__init__()
        self.block = Base()

    def forward(self, x):
        y = x
        for _ in range(2):
            y = self.block(y)[:, :3]
        return F.interpolate(y[..., ::2, ::2], x.shape[2:], mode="bilinear")


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_a_graph_for_enlargements_has_the_code_of_blocks_with_swapped_convolutions(method, image):
    net, guides = InALoop().eval(), {"block.target": "block.stem", "resize_*": "block.stem"}
    options = {"example_inputs": image, "method": method, "guide_scale": 1.0}
    swapped = hotswap.convert(net, ["block.target", "resize_*"], guides, **options)
    one, other = (hotswap.convert(net, name, "block.stem", **options)(image) for name in ("block.target", "resize_*"))
    assert not torch.allclose(swapped(image), one)
    assert not torch.allclose(swapped(image), other)
    torch.testing.assert_close(hotswap.revert(swapped)(image), net(image))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("targets", "method"), [("target", "fx"), ("target", "hooks"), ("resize_*", "auto")])
def test_networks_compiled_in_place_are_swapped_as_others(targets, method, inplace, image):
    options = {"guide_scale": 1.0, "example_inputs": image, "method": method}
    net = Defaults().eval()
    expected = hotswap.convert(net, targets, "input", **options)(image)
    net.compile(backend="eager")
    plain = net(image)
    swapped = hotswap.convert(net, targets, "input", inplace=inplace, **options)
    assert any("Module.compile was called on it" in note for note in hotswap.status(swapped).plan.notes)
    assert swapped._compiled_call_impl is net._compiled_call_impl if inplace else swapped._compiled_call_impl is None
    close(swapped(image), expected)
    close(hotswap.revert(swapped)(image), plain)


class Around(Base):
    """The module around a guided enlargement guides a convolution."""

    def __init__(self):
        super().__init__()
        self.around = InALoop()

    def forward(self, x):
        return self.target(self.stem(self.around(x)))


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_a_module_around_a_guided_enlargement_guides(method, image):
    net, guides = Around().eval(), {"target": "around", "resize_*": "input"}
    options = {"example_inputs": image, "guide_scale": 1.0}
    swapped = hotswap.convert(net, ["target", "resize_*"], guides, method=method, **options)
    enlarged = hotswap.convert(net.around, "resize_*", "input", **options)(image)
    steered = hotswap.convert(net, "target", "around", **options)
    steered.around.register_forward_hook(lambda *_: enlarged)
    close(swapped(image), steered(image))


class Gain(nn.Conv2d):
    def forward(self, x, gain=1.0):
        return F.conv2d(x, self.weight * gain, self.bias, padding=1)


class Gains(Base):
    def __init__(self):
        super().__init__()
        self.target = Gain(8, 8, 3)

    def forward(self, x):
        return self.target(self.features(x), 2.0)


class Sized(Base):
    def __init__(self):
        super().__init__()
        self.target = nn.ConvTranspose2d(8, 8, 3, stride=2)

    def forward(self, x):
        return self.target(self.features(x), output_size=(25, 22))


@pytest.mark.parametrize("method", ["fx", "hooks", "auto"])
@pytest.mark.parametrize("kind", [Gains, Sized])
def test_a_target_called_with_more_than_its_input_is_refused(kind, method, image):
    with pytest.raises(hotswap.HotswapError, match="target 'target' is called with 1 more than its input"):
        hotswap.convert(kind().eval(), "target", "stem", method=method, example_inputs=image)


class Two(networks.Plain):
    def __init__(self):
        super().__init__()
        self.later = conv()

    def forward(self, x):
        g = F.relu(self.guide(F.relu(self.stem(x))))
        return self.head(self.later(F.relu(self.target(g))))


@pytest.mark.parametrize("later", ["fx", "auto"])
def test_a_guide_caught_by_hooks_stays_where_it_was(later, image):
    options = {"guide_scale": 0.5, "example_inputs": image}
    once = hotswap.convert(Two().eval(), "target", "guide", method="hooks", **options)
    twice = hotswap.convert(once, "later", "guide", method=later, **options | {"guide_scale": 0})
    close(twice(image), once(image))


def test_a_guide_after_a_function_is_not_moved_before_it(image):
    options = {"guide_scale": 0.5, "example_inputs": image}
    once = hotswap.convert(Two().eval(), "target", "guide", method="fx", **options)
    with pytest.raises(hotswap.HotswapError, match="was swapped by fx, with guide 'guide' after a function"):
        hotswap.convert(once, "later", "guide", method="hooks", **options)


def test_the_input_of_an_inner_module_is_not_taken_for_the_networks(image, tmp_path):
    inner = hotswap.convert(Base().eval(), "target", "input", guide_scale=0.5, example_inputs=image)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.tail = inner, conv()

        def forward(self, x):
            return self.tail(F.relu(self.inner(5 * x)))

    net = Outer().eval()
    for refused in (
        lambda: hotswap.convert(net, "tail", "inner.stem", example_inputs=image),
        lambda: hotswap.save(net, tmp_path / "a.safetensors"),
    ):
        with pytest.raises(hotswap.HotswapError, match="a guide is the input of module 'inner'"):
            refused()
    assert not list(tmp_path.iterdir())


def test_modules_of_a_converted_network_are_known(image):
    options = {"guide_scale": 0.5, "example_inputs": image}
    net = Two().eval()
    once = hotswap.convert(net, net.target, net.guide, **options)
    twice = hotswap.convert(once, [once.later], {once.later: once.stem}, **options)
    swaps = hotswap.status(twice).plan.swaps
    assert [(swap.target, swap.guide) for swap in swaps] == [("target", ("guide",)), ("later", ("stem",))]
