"""The call of F.interpolate that was chosen is the one that is guided, at every size and in both modes, or none is.

In each network the right call is the one with align_corners=True: the oracle runs the plain network with
`F.interpolate` replaced by a function that guides just that.
"""

import contextlib
import copy
import functools
import inspect
import itertools
import textwrap

import pytest
import torch
import torch.nn.functional as F
from code_elsewhere import doubled, through, to_size
from networks import enlarge_by_hooks
from torch import nn
from torch.utils.checkpoint import checkpoint

import hotswap
import pac_ops
from hotswap import HotswapError, Plan
from hotswap.targets.call_sites import chain_of

SCALE = 3.0
RIGHT = {"align_corners": True}
SIZES = [(32, 32), (34, 38), (37, 29), (18, 18), (64, 30)]


@pytest.fixture
def by_hooks(monkeypatch):
    enlarge_by_hooks(monkeypatch)


def image(height=32, width=32, batch=1):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(height * width))


def oracle(net, x):
    """What the plain network gives where the calls marked as right are guided by the image."""
    plain, guided = F.interpolate, 0

    def interpolate(input, size=None, scale_factor=None, mode="nearest", align_corners=None, **rest):
        nonlocal guided
        output = plain(input, size, scale_factor, mode, align_corners, **rest)
        if not align_corners or output.shape == input.shape:
            return output
        guided += 1
        at_size = F.adaptive_avg_pool2d(x, output.shape[2:])
        return pac_ops.pacresize2d(input, at_size, tuple(output.shape[2:]), None, True, scale=SCALE)

    F.interpolate = interpolate
    try:
        with torch.no_grad():
            return net(x), guided
    finally:
        F.interpolate = plain


def convert(net, targets, **options):
    torch.manual_seed(0)
    options = {"example_inputs": image(), "guide_scale": SCALE} | options
    return hotswap.convert(net, targets, "input", **options)


class Base(nn.Module):
    """Maps of 1/2 and of about 1/4: the second is a pixel short of the first, doubled, at many sizes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.other = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.head = nn.Conv2d(4, 2, 3, 1, 1)

    def maps(self, x):
        fine = torch.tanh(self.first(x))
        return fine, self.up(F.max_pool2d(self.other(fine), 2))

    def resized(self, x, like, **options):
        if x.shape[2:] == like.shape[2:]:
            return x
        return F.interpolate(x, size=like.shape[2:], mode="bilinear", **options)


class Helper(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        return to_size(self.head(fine + to_size(short, fine)), x, **RIGHT)


class HelperWithinHelper(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        return through(self.head(fine + through(short, fine)), x, **RIGHT)


class MethodOfBase(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        return self.resized(self.head(fine + self.resized(short, fine)), x, **RIGHT)


class OneLine(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        return to_size(self.head(fine + to_size(short, fine)), x, **RIGHT) + to_size(fine.mean(1, True), x)


class OneLineOfCalls(Base):
    def forward(self, x):
        f = self.first(x)
        a, b = (
            F.interpolate(f, x.shape[2:], mode="bilinear"),
            F.interpolate(f, x.shape[2:], mode="bilinear", **RIGHT),
        )
        return a + 2 * b if x.shape[2] > 1 else a


class Branch(Base):
    """The same helper in branches, of which a size takes one."""

    def forward(self, x):
        fine, short = self.maps(x)
        if fine.shape != short.shape:
            fine = fine + to_size(short, fine)
        elif x.shape[2] < 20:
            fine = fine + to_size(self.other(F.avg_pool2d(fine, 2)), fine)
        return to_size(self.head(fine), x, **RIGHT)


class Lambda(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        up = (lambda y, z, **o: y if y.shape == z.shape else F.interpolate(y, z.shape[2:], mode="bilinear", **o),)[0]
        fine = fine + up(short, fine)
        return up(self.head(fine), x, **RIGHT)


class Partial(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        to_fine, to_image = functools.partial(to_size, like=fine), functools.partial(to_size, like=x, **RIGHT)
        return to_image(self.head(fine + to_fine(short)))


class Decorated(Base):
    @doubled
    @torch.autocast("cpu", enabled=False)
    def forward(self, x):
        fine, short = self.maps(x)
        return self.last(self.head(fine + doubled(to_size)(short, fine)), x)

    @doubled
    @torch.enable_grad()
    def last(self, y, x):
        return to_size(y, x, **RIGHT)


class Recursion(Base):
    """From a map to the image in several steps, the last of which is the right one."""

    def grown(self, y, x, last=True):
        if 2 * y.shape[2] < x.shape[2]:
            y = self.grown(y, F.avg_pool2d(x, 2), last=False)
        return to_size(y, x, align_corners=last)

    def forward(self, x):
        return self.grown(self.head(F.avg_pool2d(self.first(x), 2)), x)


class TrainingOnly(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        if self.training:
            fine = fine + to_size(F.avg_pool2d(fine, 2), fine)
        fine = fine + to_size(short, fine)
        return to_size(self.head(fine), x, **RIGHT)


class Pyramid(Base):
    """As torchvision's: a loop over levels, each enlarged to the next. The right one is the last but one."""

    def __init__(self, levels=4):
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(4, 4, 3, 2, 1) for _ in range(levels - 1))
        self.lateral = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(levels))

    def forward(self, x):
        maps = [torch.tanh(self.first(x))]
        for down in self.down:
            maps.append(down(maps[-1]))
        last = self.lateral[-1](maps[-1])
        for i in range(len(maps) - 2, -1, -1):
            side = self.lateral[i](maps[i])
            if last.shape[2:] != side.shape[2:] or x.shape[3] < 2:
                last = F.interpolate(last, size=side.shape[2:], mode="bilinear", align_corners=i == 1)
            last = side + last
        return last


class Uper(Pyramid):
    """All lateral maps first, and the loop after them."""

    def forward(self, x):
        maps = [torch.tanh(self.first(x))]
        for down in self.down:
            maps.append(down(maps[-1]))
        maps = [lateral(m) for lateral, m in zip(self.lateral, maps, strict=True)]
        for i in range(len(maps) - 1, 0, -1):
            maps[i - 1] = maps[i - 1] + to_size(maps[i], maps[i - 1], align_corners=i == 2)
        return torch.cat([to_size(m, maps[0]) for m in maps], 1)


class LoopOverMaps(Pyramid):
    """A loop between whose turns nothing is called: only what is enlarged tells them apart."""

    def maps(self, x):
        maps = [torch.tanh(self.first(x))]
        for down in self.down:
            maps.append(down(maps[-1]))
        return maps

    def forward(self, x):
        like, *maps = self.maps(x)
        for i, y in enumerate(maps):
            if y.shape[2:] != like.shape[2:]:
                y = F.interpolate(y, size=like.shape[2:], mode="bilinear", align_corners=i == 1)
            like = like + y
        return like


class Comprehension(LoopOverMaps):
    def forward(self, x):
        maps = self.maps(x)
        return sum([to_size(y, maps[0], align_corners=i == 2) for i, y in enumerate(maps)])


class Generator(LoopOverMaps):
    def forward(self, x):
        maps = self.maps(x)
        return sum(to_size(y, maps[0], align_corners=i == 2) for i, y in enumerate(maps))


class Mapped(LoopOverMaps):
    def forward(self, x):
        maps = self.maps(x)
        return sum(map(lambda i, y: to_size(y, maps[0], align_corners=i == 2), range(4), maps))


KINDS = {
    Helper: "resize_1",
    HelperWithinHelper: "resize_1",
    MethodOfBase: "resize_1",
    OneLine: "resize_1",
    OneLineOfCalls: "resize_2",
    Branch: "resize_1",
    Lambda: "resize_1",
    Partial: "resize_1",
    Decorated: "resize_1",
    Recursion: "resize_2",
    TrainingOnly: "resize_1",
    Pyramid: "resize_2",
    Uper: "resize_2",
    LoopOverMaps: "resize_2",
    Comprehension: "resize_2",
    Generator: "resize_2",
    Mapped: "resize_2",
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_right_call_is_guided_at_every_size_and_in_both_modes(kind):
    net = kind()
    converted = convert(net, [KINDS[kind]])
    for training, size in itertools.product((False, True), SIZES):
        expected, guided = oracle(net.train(training), image(*size))
        assert guided == 1
        with torch.no_grad():
            found = converted.train(training)(image(*size))
        torch.testing.assert_close(found, expected, msg=lambda m, s=(training, size): f"{s}: {m}")


# --- copies, plans and sizes ----------------------------------------------------------------------------------


def assert_right(converted, net, sizes=SIZES):
    for size in sizes:
        with torch.no_grad():
            torch.testing.assert_close(converted(image(*size)), oracle(net, image(*size))[0])


@pytest.mark.parametrize("kind", [Helper, Mapped], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("size", SIZES[1:2], ids=str)
def test_a_plan_means_the_same_call_whatever_size_it_is_applied_at(kind, size):
    """At 34 x 38 another call comes first, so that the numbers of the calls are others."""
    net, plan = kind().eval(), hotswap.status(convert(kind().eval(), [KINDS[kind]])).plan
    again = Plan.from_dict(plan.to_dict())
    applied = hotswap.apply(kind().eval(), again, example_inputs=image(*size))
    assert hotswap.status(applied).plan.resizes == plan.resizes
    assert_right(copy.deepcopy(applied), net)


def test_a_call_that_the_example_does_not_make_is_refused():
    extra = hotswap.status(convert(Helper().eval(), ["resize_1"], example_inputs=image(34, 38))).plan
    assert extra.resizes[0].at == ("Helper.forward: to_size 2/2", "to_size: interpolate 1/1")
    message = "by the plan, at Helper.forward: to_size 2/2 > to_size: .*Helper makes no such call with these inputs"
    with pytest.raises(HotswapError, match=message):
        hotswap.apply(Helper().eval(), extra, example_inputs=image(32, 32))


def test_targets_named_later_at_another_size_are_others():
    once = convert(Helper().eval(), ["resize_1"])
    names = [r.alias for r in hotswap.inspect(once, image(34, 38)).resizes if r.swap is None]
    assert names == ["resize_1"]  # the other call, which that size makes first
    twice = convert(once, names, example_inputs=image(34, 38))
    calls = {resize.at[0]: resize.call for resize in hotswap.status(twice).plan.resizes}
    assert calls == {"Helper.forward: to_size 1/2": 0, "Helper.forward: to_size 2/2": 1}
    assert torch.equal(twice(image()), once(image()))
    assert not torch.equal(twice(image(34, 38)), once(image(34, 38)))


SOURCE = """
class Written(Base):
    def forward(self, x):
        fine, short = self.maps(x)
        fine = fine + to_size(short, fine)
        return to_size(self.head(fine), x, **RIGHT)
"""


def test_comments_and_another_formatting_change_no_plan():
    def written(source):
        names = dict(globals())
        exec(source, names)  # noqa: S102
        return names["Written"]().eval()

    other = SOURCE.replace("        return to_size(", "\n        # The last.\n        return to_size(\n            ")
    plan = hotswap.status(convert(written(SOURCE), ["resize_1"])).plan
    assert_right(hotswap.apply(written(other), plan, example_inputs=image()), written(SOURCE), SIZES[1:2])
    more = textwrap.indent("fine = to_size(fine, fine)\n", " " * 8)
    with pytest.raises(HotswapError, match="makes no such call .* if its code changed"):
        hotswap.apply(
            written(SOURCE.replace("        return", more + "        return")), plan, example_inputs=image()
        )


# --- what nothing tells apart -----------------------------------------------------------------------------------


class SameInput(Base):
    """One map enlarged twice from one place."""

    def forward(self, x):
        y = self.head(self.first(x))
        return [F.interpolate(y, scale_factor=f, mode="bilinear") for f in (2, 2.0)]


def test_turns_that_nothing_tells_apart_are_refused(by_hooks):
    with pytest.raises(
        HotswapError, match=r"'F.interpolate 1 in the network' is one of 2 calls .* a module of its own"
    ):
        convert(SameInput().eval(), ["resize_2"])


class OtherInput(Pyramid):
    """What the loop enlarges comes from other modules where the image is large."""

    def forward(self, x):
        like = self.first(x)
        maps = [self.lateral[2](self.down[0](like)), self.down[1](like) if x.shape[2] < 100 else self.down[2](like)]
        for y in maps:
            like = like + F.interpolate(y, size=like.shape[2:], mode="bilinear")
        return like


def test_a_turn_that_cannot_be_known_again_is_an_error():
    converted = convert(OtherInput().eval(), ["resize_2"])
    converted(image(34, 38))
    with pytest.raises(
        HotswapError, match="'F.interpolate 1 in the network' .* makes other calls of F.interpolate at"
    ):
        converted(image(128, 128))
    converted(image(34, 38))


# --- checkpointed and compiled ----------------------------------------------------------------------------------


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


# --- entered past forward ---------------------------------------------------------------------------------------


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


def in_and_out_of_loops(x):
    with contextlib.nullcontext():
        F.interpolate(x, 8)  # once
    F.interpolate(x, 8)  # once
    for _ in range(2):
        try:
            F.interpolate(x, 8)  # again
        except ValueError:
            F.interpolate(x, 8)  # again
            continue
    try:
        F.interpolate(x, 8)  # once
    except ValueError:
        F.interpolate(x, 8)  # once
    while x:
        F.interpolate(x, 8)  # again
    F.interpolate(x, 8)  # once


def test_only_what_lies_in_a_loop_repeats():
    """Handlers of errors jump back too, from Python 3.12 on."""
    lines, first = inspect.getsourcelines(in_and_out_of_loops)
    for number, line in enumerate(lines, first):
        if "#" in line:
            assert chain_of(in_and_out_of_loops.__code__, number).repeats == ("again" in line), (number, line)
