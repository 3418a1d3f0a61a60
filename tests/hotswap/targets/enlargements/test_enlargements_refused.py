"""Enlargements that are not guided: what is refused, passed over, or guided already."""

import copy

import pytest
import torch
import torch.nn.functional as F
from enlarging_nets import EVERY, IMAGE, Net, assert_same, convert, run
from sampled import sampled
from torch import nn

import hotswap
from hotswap import HotswapError


@pytest.mark.parametrize(
    ("targets", "guide", "message"),
    [
        (["resize_9"], "input", "target 'resize_9' is none of the network's resizes; closest: resize_1"),
        (["near"], "input", "target 'near' cannot be swapped: mode 'nearest' reads one coarse pixel.*footprint=4"),
        (["resize_5"], "input", "target 'resize_5' cannot be swapped: mode 'nearest'"),
        (["transposed"], "a", r"guide 'a' of 12 x 20 is coarser than the output 24 x 40 .*\"input\" is fine enough"),
        (["resize_1"], "aa", "guide 'aa' is no module path or alias of this network; closest: a"),
        (["resize_1"], "near", "guide 'near'(, which did not run before it| is computed after target)"),
        (["resize_1"], [], "guide must name at least one source"),
        (["resize_1"], {"resize_2": "input"}, "must have a key for target resize_1|which is none of the targets"),
        (["resize_1"], {"resize_1": "input", "conv1_1": "a"}, "guide has 'conv1_1', which is none of the targets"),
    ],
    ids=str,
)
def test_refusals_change_nothing(net, targets, guide, message):
    before = copy.deepcopy(net)
    with pytest.raises(HotswapError, match=message):
        hotswap.convert(net, targets, guide, example_inputs=IMAGE, inplace=True)
    assert [type(m) for m in net.modules()] == [type(m) for m in before.modules()]
    assert_same(run(net), run(before), rtol=0, atol=0)


def test_a_failure_among_the_convolutions_leaves_the_enlargements_plain(net):
    with pytest.raises(HotswapError, match=r"guide .*near.* is computed after target"):
        convert(net, ["resize_1", "block.conv"], {"resize_1": "input", "block.conv": "near"}, inplace=True)
    assert [type(m) for m in net.modules()] == [type(m) for m in Net().modules()]


def test_trainable_bilinear_weights_are_refused(net):
    net.transposed.requires_grad_(True)
    with pytest.raises(HotswapError, match=r"can be trained, which a swap would end; freeze them"):
        convert(net, ["transposed"])


def test_nothing_fine_enough_is_said():
    class Super(nn.Module):
        def forward(self, image):
            return F.interpolate(image, scale_factor=4, mode="bilinear")

    with pytest.raises(HotswapError, match="where nothing before it is as fine as its output of 96 x 160"):
        hotswap.convert(Super(), "resize_*", example_inputs=IMAGE)
    with pytest.raises(HotswapError, match="target 'resize_1' cannot be swapped: nothing before it is as fine"):
        hotswap.convert(Super(), "resize_1", example_inputs=IMAGE)


class Detecting(nn.Module):
    """Given a list, as detection networks are; enlarges the image itself, which nothing can guide."""

    def __init__(self):
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.last = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, images):
        image = F.interpolate(images[0][None], scale_factor=2, mode="bilinear")
        fine = torch.relu(self.stem(image))
        return self.last(self.up(torch.tanh(self.down(fine))) + fine)


def test_what_nothing_can_guide_is_passed_over_and_what_is_fine_enough_is_said():
    net, images = Detecting().eval(), ([IMAGE[0]],)
    with pytest.raises(HotswapError, match="guide 'input' must give .*; 'stem' is fine enough"):
        hotswap.convert(net, "resize_*", "input", example_inputs=images)
    converted = hotswap.convert(net, "resize_*", "stem", example_inputs=images)
    plan = hotswap.status(converted).plan
    assert [resize.target for resize in plan.resizes] == ["up"]  # nor the last one, which enlarges beyond all others
    assert "'resize_*' also matched 2 that cannot be swapped" in plan.notes[0]
    assert [info.automatic for info in hotswap.inspect(net, images).resizes] == [False, False, False]


class Positions(nn.Module):
    """A position embedding that is enlarged to the image's size, and a canvas that the image is drawn on."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.rand(1, 16, 4))  # of 4 x 4 patches
        self.conv = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, image):
        x = torch.relu_(self.conv(image))
        grid = self.positions.reshape(1, 4, 4, 4).permute(0, 3, 1, 2)
        x = x + F.interpolate(grid, size=x.shape[2:], mode="bilinear")
        canvas = torch.zeros(*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2)
        canvas[:, :, 1:-1, 1:-1] = x
        return F.interpolate(canvas, scale_factor=2, mode="bilinear")


def test_position_embeddings_are_not_guided():
    # One for all images of a batch, where guides are one for each.
    net, images = Positions().eval(), torch.rand(3, 3, 16, 16)
    with pytest.raises(
        HotswapError, match="'resize_1' cannot be swapped: what it enlarges is the same for every image"
    ):
        hotswap.convert(net, "resize_1", example_inputs=images[:1])
    converted = hotswap.convert(net, "resize_*", guide_scale=0.0, example_inputs=images[:1])
    assert [resize.target_alias for resize in hotswap.status(converted).plan.resizes] == ["resize_2"]
    torch.testing.assert_close(run(converted, images), run(net, images))


def test_a_guided_layer_called_without_its_guide_says_so(net):
    with pytest.raises(HotswapError, match="was called without its guide"):
        convert(net).up(torch.rand(1, 4, 3, 3))


@pytest.mark.parametrize(
    ("first", "inplace"),
    sampled([("some of each", True), ("convolutions", True), ("enlargements", False), ("some of each", False)]),
)
def test_more_targets_later(net, first, inplace, way):
    convolutions, options = ["b"], {"learn_scale": True, "method": way}
    steps = {
        "convolutions": (convolutions, EVERY),
        "enlargements": (EVERY, convolutions),
        "some of each": (["resize_1", *convolutions], EVERY),
    }[first]
    once = convert(net, steps[0], **options)
    learned = [p for name, p in once.named_parameters() if "guide_log_scale" in name]
    with torch.no_grad():
        for p in learned:
            p.add_(0.1)
    before = run(once)
    twice = convert(once, steps[1], inplace=inplace, **options)
    assert (twice is once) == inplace
    if inplace:
        assert {id(p) for p in learned} <= {id(p) for p in twice.parameters()}
    else:
        assert_same(run(once), before)
    fresh = convert(net, [*EVERY, *convolutions], **options)
    fresh.load_state_dict(twice.state_dict())
    assert_same(run(twice), run(fresh))
    assert_same(run(hotswap.revert(twice)), run(net), rtol=0, atol=0)
    assert type(hotswap.revert(twice)) is type(net)


def test_what_is_guided_already_is_not_guided_again(net):
    with pytest.raises(HotswapError, match="swapped already .*name others"):
        convert(convert(net))


def test_an_enlargement_by_less_than_2_is_left_and_none_is_none():
    class By(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.conv, self.factor = nn.Conv2d(3, 4, 3, stride=2, padding=1), factor

        def forward(self, x):
            return F.interpolate(self.conv(x), scale_factor=self.factor, mode="bilinear")

    said = r'takes no enlargement .*"resize_\*" takes all that can be guided: resize_1 \(x1.7, scores\)'
    with pytest.raises(hotswap.HotswapError, match=said):
        hotswap.convert(By(1.7), "resize", "input", example_inputs=IMAGE)
    hotswap.convert(By(1.7), "resize_1", "input", example_inputs=IMAGE)  # which works
    hotswap.convert(By(1.7), "resize_*", "input", example_inputs=IMAGE)
    with pytest.raises(hotswap.HotswapError, match="takes no enlargement .*: resize_1 .*it does not enlarge"):
        hotswap.convert(By(0.5), "resize", "input", example_inputs=IMAGE)
    with pytest.raises(hotswap.HotswapError, match="it does not enlarge"):
        hotswap.convert(By(0.5), "resize_*", "input", example_inputs=IMAGE)
