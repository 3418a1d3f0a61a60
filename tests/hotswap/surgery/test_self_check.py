"""`convert` compares a swapped network at guide scale 0 with the plain one, on what inputs it has."""

import copy

import pytest
import torch
import torch.nn.functional as F
from networks import conv
from torch import nn

import hotswap
from hotswap.network import agreement
from hotswap.surgery import install, self_check

NOTHING = agreement.Distance(0.0, "")


class AsksForATensor(nn.Module):
    """Adds a skip connection if that is a tensor, by a test that no tracer can answer: a proxy's type is its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.target = conv(3), conv()

    def forward(self, x):
        skip = self.stem(x).relu()
        y = skip.tanh()
        if type(skip) is torch.Tensor:
            y = y + skip
        return F.interpolate(self.target(y), scale_factor=2, mode="bilinear")


@torch.no_grad()
@pytest.mark.parametrize("method", ["auto", "fx", "hooks"])
def test_a_graph_that_took_another_branch_is_not_used(method):
    plain, image = AsksForATensor().eval(), torch.rand(1, 3, 12, 10)
    if method == "fx":
        with pytest.raises(hotswap.HotswapError, match='does not compute what the plain one does.*method="hooks"'):
            hotswap.convert(plain, "target", "stem", method=method, example_inputs=image)
        return
    converted = hotswap.convert(plain, "target", "stem", guide_scale=0.0, method=method, example_inputs=image)
    torch.testing.assert_close(converted(image), plain(image))


class Silent(AsksForATensor):
    """The same, whose output is 0 here whatever came before it."""

    def forward(self, x):
        return (super().forward(x) - 1e3).relu()


@torch.no_grad()
def test_a_wrong_branch_shows_inside_where_outputs_are_silent():
    plain, image = Silent().eval(), torch.rand(1, 3, 12, 10)
    assert not plain(image).any()
    with pytest.raises(hotswap.HotswapError, match="the input of 'target', call 1 is off by"):
        hotswap.convert(plain, "target", "stem", method="fx", example_inputs=image)
    plan = hotswap.plan(plain, "target", "stem", example_inputs=image)
    assert plan.method == "hooks"


IMAGE = torch.rand(2, 3, 16, 12, generator=torch.Generator().manual_seed(0))


class Twice(nn.Module):
    """Two outputs in a structure, the second of which alone a test below makes wrong."""

    def __init__(self):
        super().__init__()
        self.stem, self.target, self.aside = conv(3), conv(), conv()

    def forward(self, x):
        y = self.stem(x)
        return {"out": self.target(y), "more": [self.aside(y).argmax(1), {"mean": self.aside(y).mean()}]}


@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("where", ["target", "aside"])
def test_surgery_that_goes_wrong_is_caught(method, where, monkeypatch):
    """A mutation of it: a weight that is not the network's own, in any output, by either method."""
    installed = install.install

    def wrongly(model, prepared):
        installed(model, prepared)
        module = model.get_submodule(where)
        module.weight = nn.Parameter(module.weight * 1.01)

    monkeypatch.setattr(install, "install", wrongly)
    with pytest.raises(hotswap.HotswapError, match="does not compute what the plain one does"):
        hotswap.convert(Twice(), "target", "stem", method=method, example_inputs=IMAGE)
    hotswap.convert(Twice(), "target", "stem", method=method, example_inputs=IMAGE, check=False)


class OtherAtOtherSizes(Twice):
    def forward(self, x):
        y = self.stem(x)
        return self.target(y) * WIDTHS.get(str(x.shape[-1]), 1.0)


WIDTHS = {"19": 2.0}


def test_a_second_odd_size_is_looked_at():
    """A dictionary asked for what is in a proxy's name has it not, at any size."""
    net = OtherAtOtherSizes()
    with pytest.raises(hotswap.HotswapError, match='method="hooks"'):
        hotswap.convert(net, "target", "stem", method="fx", example_inputs=IMAGE)
    assert hotswap.status(hotswap.convert(net, "target", "stem", example_inputs=IMAGE)).plan.method == "hooks"


def test_an_example_of_a_shape_alone_is_filled():
    memory = IMAGE.clone()  # as torch.empty may give it
    memory[0, 0, 0, 0] = 1e30
    hotswap.convert(Twice().eval(), "target", "stem", example_inputs=memory)


class OfOneSize(Twice):
    """Enlarges to a size of its own, for images of one size."""

    def forward(self, x):
        if x.shape[-1] != 12:
            raise ValueError("12 wide, please")
        return F.interpolate(self.target(F.avg_pool2d(self.stem(x), 4)), size=(16, 12), mode="bilinear")


def notes_of(model):
    return " ".join(hotswap.status(model).plan.notes)


@torch.no_grad()
@pytest.mark.parametrize("batches", ["list", "generator", "tuples"])
@pytest.mark.parametrize("targets", [("target", "stem"), ("resize_*", "input")])
def test_batches_are_the_example_where_none_is_given(batches, targets):
    other = 1 - IMAGE
    data = {
        "list": [IMAGE, other],
        "generator": (x for x in (IMAGE, other)),
        "tuples": [(IMAGE,), (other,)],
    }
    net = OfOneSize().eval()
    converted = hotswap.convert(net, *targets, calibrate_on=data[batches], space=None)
    expected = hotswap.convert(net, *targets, example_inputs=IMAGE, space=None)
    hotswap.calibrate(expected, [IMAGE, other])  # all of them: an iterator's first was not lost
    assert torch.equal(converted(other), expected(other))
    assert "not compared" not in notes_of(converted)


class TakesTheBest(Twice):
    """Makes much of little: the order of scores that are all but the same."""

    def forward(self, x):
        scores = self.target(self.stem(x)).mean(1).flatten(1) * 1e-6 + 1
        return scores.topk(5).indices


def test_rounding_that_a_network_makes_much_of_is_rounding():
    converted = hotswap.convert(TakesTheBest(), "target", "stem", example_inputs=IMAGE)
    assert hotswap.status(converted).plan.method == "fx"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    net = Twice().to(dtype)
    for targets, guide in (("target", "stem"),):
        converted = hotswap.convert(net, targets, guide, example_inputs=IMAGE.to(dtype))
        assert "not compared" not in notes_of(converted)
        assert {x.dtype for x in converted.parameters()} == {dtype}


class Draws(Twice):
    """Counts its runs, keeps what it computed, and draws random numbers in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.kept = {}

    def forward(self, x):
        y = F.dropout(self.aside(self.target(self.stem(x))), training=True)
        self.note(y)
        return y

    def note(self, y):
        self.runs.add_(1)
        self.kept[tuple(y.shape)] = y


@pytest.mark.parametrize("method", ["auto", "hooks"])
def test_the_network_is_left_as_it_is_and_random_numbers_are_drawn_alike(method):
    net = Draws().train()
    state, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    converted = hotswap.convert(net, "target", "stem", method=method, example_inputs=IMAGE)
    assert "not compared" not in notes_of(converted)
    assert all(torch.equal(x, state[name]) for name, x in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert net.kept == converted.kept == {}
    assert all(module.training for module in net.modules())


class Chooses(Twice):
    def forward(self, x):
        if not torch.compiler.is_compiling() and x.min() < 0.5:
            raise RuntimeError("too dark")
        return self.target(self.stem(x))


def test_modules_called_under_a_transform_are_not_looked_into():
    class Vmapped(nn.Sequential):
        def forward(self, x):
            return torch.vmap(lambda image: super(Vmapped, self).forward(image[None])[0])(x)

    net, x = Vmapped(conv(3), conv()), torch.rand(2, 3, 8, 9)
    swapped = hotswap.convert(net, "1", "0", guide_scale=1.0, example_inputs=x)
    plain = hotswap.convert(nn.Sequential(*net), "1", "0", guide_scale=1.0, example_inputs=x)
    torch.testing.assert_close(swapped(x), plain(x))


def test_what_cannot_be_compared_is_said():
    for net, why in ((Chooses(), "not checked by a run"), (Twice().to("meta"), "has no values")):
        assert why in " ".join(hotswap.plan(net, "target", "stem").notes)
    broken = Twice()
    nn.init.constant_(broken.stem.weight, torch.nan)
    nn.init.constant_(broken.aside.weight, torch.nan)
    assert "not finite" in notes_of(hotswap.convert(broken, "target", "stem", example_inputs=IMAGE))


def test_load_compares_with_the_weights_of_the_file(tmp_path, monkeypatch):
    net = Twice()
    hotswap.save(hotswap.convert(net, "target", "stem", example_inputs=IMAGE), tmp_path / "swapped.pt")
    ran = []
    monkeypatch.setattr(self_check, "distance", lambda before, after: ran.append(before) or NOTHING)
    loaded = hotswap.load(tmp_path / "swapped.pt", Twice(), example_inputs=IMAGE)
    assert torch.equal(ran[0]["['out']"], net.eval()(IMAGE)["out"])
    assert "target" in notes_of(loaded) or hotswap.status(loaded).plan.swaps
    ran.clear()
    hotswap.load(tmp_path / "swapped.pt", Twice(), example_inputs=IMAGE, check=False)
    assert not ran


def test_distances_between_outputs():
    x = torch.tensor([1.0, -4.0, torch.inf])
    cases = [
        ({"a": x}, {"a": x.clone()}, 0.0),
        ({"a": x}, {"a": x + torch.tensor([0.0, 0.4, 0.0])}, 0.1),
        ({"a": x}, {"b": x}, float("inf")),
        ({"a": x}, {"a": -x}, float("inf")),
        ([x], (x,), float("inf")),
        ((x, None), (x, None), 0.0),
        ((x, None), (x, x), float("inf")),
        (x, x[:2], float("inf")),
        (x, x.double(), float("inf")),
        (torch.arange(4), torch.tensor([0, 1, 2, 5]), 0.25),
        ((x, "text"), (x, "other"), float("inf")),
        ((x, 1.0), (x, 1.5), 0.5),
    ]
    for before, after, size in cases:
        found = agreement.distance(agreement.values(before), agreement.values(after))
        assert found.size == pytest.approx(size), (before, after)
