"""The call of F.interpolate that was chosen is the one that is guided, at every size and in both modes, or none is.

In each network the right call is the one with align_corners=True: the oracle runs the plain network with
`F.interpolate` replaced by a function that guides just that.
"""

import contextlib
import copy
import inspect
import itertools
import textwrap

import pytest
import torch
import torch.nn.functional as F
from calls_alike import KINDS, RIGHT, SIZES, Base, Helper, Mapped, Pyramid, assert_right, convert, image, oracle
from code_elsewhere import to_size

import hotswap
from hotswap import HotswapError, Plan
from hotswap.targets.call_sites import chain_of


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
        names = {"Base": Base, "RIGHT": RIGHT, "to_size": to_size}
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
