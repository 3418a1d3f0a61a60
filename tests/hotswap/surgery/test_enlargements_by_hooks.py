"""Enlargements guided by hooks: what a graph could not do, and nothing left of a pass when it is over.

tests/hotswap/targets/enlargements has what they and graphs have in common.
"""

import copy
import threading
from dataclasses import replace

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

import hotswap
import pac_ops
from hotswap.surgery.install import CALLS, records
from hotswap.surgery.passes import Passes

SCALE = 2.0


@pytest.fixture
def image():
    return torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(0))


class Data(nn.Module):
    """Looks at values, and enlarges a bright image once more, before its other calls."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, image):
        fine = F.relu(self.first(image))
        if image.mean() > 10:
            fine = fine + F.interpolate(self.second(fine), size=fine.shape[2:], mode="bilinear")
        middle = F.interpolate(self.second(fine), scale_factor=2, mode="bilinear")
        return F.interpolate(middle, size=image.shape[2:], mode="bilinear", align_corners=True)


class Nested(nn.Module):
    """Each of its kind enlarges what the next inside it gives, all by the same line of code."""

    def __init__(self, inner=None):
        super().__init__()
        self.down, self.inner = nn.Conv2d(3, 3, 3, 2, 1), inner

    def forward(self, x):
        y = self.down(x)
        if y.mean() < 10 and self.inner is not None and x.shape[2] != 20:
            y = self.inner(y)
        return F.interpolate(y, size=x.shape[2:], mode="bilinear")


def guided(net, targets="resize_*", guide="input", **options):
    torch.manual_seed(0)
    return hotswap.convert(net.eval(), targets, guide, **{"guide_scale": SCALE, "footprint": 2} | options)


def enlarged(x, guide, align_corners=False):
    guide = F.adaptive_avg_pool2d(guide, (guide.shape[2], guide.shape[3]))
    return pac_ops.pacresize2d(x, guide, (guide.shape[2], guide.shape[3]), None, align_corners, scale=SCALE)


def records_of(net):
    return [record for _, _, record in records(net)]


def nothing_is_kept(net):
    (record,) = records_of(net)
    shared = record.steering.passes
    assert isinstance(shared, Passes)
    return not shared._frames and not shared._running


def test_what_only_some_images_call_shifts_no_other(image):
    net = Data()
    converted = guided(net, example_inputs=image)
    assert "enlargements not by fx: Data.forward cannot be traced" in str(hotswap.status(converted))
    for x in (image, image + 20):
        fine = F.relu(net.first(x))
        if x.mean() > 10:
            fine = fine + F.interpolate(net.second(fine), size=fine.shape[2:], mode="bilinear")
        half = F.adaptive_avg_pool2d(x, (fine.shape[2], fine.shape[3]))
        middle = pac_ops.pacresize2d(net.second(fine), half, None, (2.0, 2.0), scale=SCALE)
        torch.testing.assert_close(converted(x), enlarged(middle, x, align_corners=True))
    assert nothing_is_kept(converted)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_the_same_line_in_modules_inside_each_other(target, image):
    net = Nested(Nested(Nested()))
    names = [site.alias for site in hotswap.inspect(net, image).resizes]  # the innermost first
    converted = guided(net, names[target], example_inputs=image)
    levels = [image]
    for module in (net, net.inner, net.inner.inner):
        levels.append(module.down(levels[-1]))
    y = levels.pop()
    for index, x in enumerate(reversed(levels)):
        pooled = F.adaptive_avg_pool2d(image, (x.shape[2], x.shape[3]))
        y = enlarged(y, pooled) if index == target else F.interpolate(y, size=x.shape[2:], mode="bilinear")
    torch.testing.assert_close(converted(image), y)


def test_the_same_line_in_a_module_that_only_some_images_call(image):
    net = Nested(Nested())
    small = image[:, :, :20]
    assert len(hotswap.inspect(net, small).resizes) == 1
    converted, down = guided(net, example_inputs=small), net.down(image)
    inner = F.interpolate(net.inner.down(down), size=down.shape[2:], mode="bilinear")
    torch.testing.assert_close(converted(image), enlarged(inner, image))


def test_two_threads_have_their_own_guides(image):
    converted, images = guided(Data(), example_inputs=image), [image, image.flip(2), image.flip(3), 1 - image]
    with torch.no_grad():
        expected, found = [converted(x) for x in images], [None] * len(images)
    barrier = threading.Barrier(len(images))

    def work(index):
        barrier.wait()
        with torch.no_grad():
            for _ in range(20):
                found[index] = converted(images[index])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for x, wanted in zip(found, expected, strict=True):
        assert torch.equal(x, wanted)
    assert nothing_is_kept(converted)


def test_an_exception_leaves_nothing_behind(image):
    converted = guided(Data(), example_inputs=image)
    wanted = converted(image)
    with pytest.raises(RuntimeError):
        converted(image[:, :2])
    handle = converted.second.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        converted(image)
    handle.remove()
    assert nothing_is_kept(converted)
    assert torch.equal(converted(image), wanted)


def test_a_copy_has_its_own_relay_and_both_revert(image):
    net = Data()
    converted = guided(net, example_inputs=image)
    other = copy.deepcopy(converted)
    assert (
        records_of(other)[0].steering.passes is other.__dict__[CALLS].passes is not converted.__dict__[CALLS].passes
    )
    assert torch.equal(other(image), converted(image))
    for model in (other, converted):
        plain = hotswap.revert(model)
        assert type(plain) is Data
        assert torch.equal(plain(image), net(image))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in plain.modules())
        assert CALLS not in plain.__dict__


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.again = Data(), True

    def forward(self, image):
        return checkpoint(self.inner, image, use_reentrant=False) if self.again else self.inner(image)


def test_activation_checkpointing_runs_it_again(image):
    guides = {"resize_1": "inner.first", "resize_2": "input"}
    converted, grads = guided(Checkpointed(), [*guides], guides, example_inputs=image), []
    for again in (False, True):
        converted.again = again
        converted.zero_grad()
        converted(image).square().sum().backward()
        grads.append([p.grad.clone() for p in converted.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


class Traceable(Data):
    """The same calls, and nothing that a graph could not have."""

    def forward(self, image):
        fine = F.relu(self.first(image))
        middle = F.interpolate(self.second(fine), scale_factor=2, mode="bilinear")
        return F.interpolate(middle, size=image.shape[2:], mode="bilinear", align_corners=True)


def test_a_plan_made_for_hooks_is_carried_out_by_hooks(image):
    converted = guided(Traceable(), example_inputs=image)
    assert "rewrites" in str(hotswap.status(converted))
    by_hooks = guided(Data(), example_inputs=image)
    plan = hotswap.Plan.from_dict(hotswap.status(by_hooks).plan.to_dict())
    plan = replace(plan, resizes=tuple(replace(resize, at=()) for resize in plan.resizes))  # of other code
    assert [resize.taps for resize in plan.resizes] == [(None,), (None,)]
    traced = hotswap.apply(Traceable().eval(), plan, example_inputs=image)
    assert traced.__dict__[CALLS].passes is records_of(traced)[0].steering.passes


def test_a_plan_that_catches_a_guide_where_nothing_is_is_refused(image):
    net = Data().eval()
    plan = hotswap.status(guided(net, "resize_1", "first", example_inputs=image)).plan
    lost = replace(plan, resizes=(replace(plan.resizes[0], taps=(("nowhere", 0),)),))
    with pytest.raises(
        hotswap.HotswapError, match="catches a guide at 'nowhere', which is no module of this network"
    ):
        hotswap.apply(net, lost, example_inputs=image)


def test_with_convolutions_beside(image):
    """Which cannot be traced through it, and so are swapped by hooks too."""
    converted = guided(Data(), ["second", "resize_*"], {"second": "first", "resize_*": "input"}, example_inputs=image)
    assert hotswap.status(converted).plan.method == "hooks"
    alone = guided(Data(), "second", "first", example_inputs=image, method="hooks")
    alone.load_state_dict(converted.state_dict())
    with_zero = copy.deepcopy(converted)
    for module in with_zero.modules():
        if hasattr(module, "guide_scale") and type(module).__name__ == "GuidedInterpolate":
            module.guide_scale = 0.0
    torch.testing.assert_close(with_zero(image), alone(image))
    assert not torch.allclose(converted(image), alone(image))


def test_a_forward_replaced_on_the_instance_is_refused(image):
    net = Data()
    net.forward = net.forward
    with pytest.raises(hotswap.HotswapError, match="the network has had its forward replaced on the instance"):
        guided(net, example_inputs=image)


def uper_net():
    backbone = transformers.ConvNextConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, out_features=["stage1", "stage2", "stage3", "stage4"]
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, hidden_size=8, auxiliary_channels=8, auxiliary_in_channels=8, num_labels=3
    )
    return transformers.UperNetForSemanticSegmentation(config)  # by fx it would give a dict


REAL = {
    "smp's Segformer": lambda: smp.Segformer("resnet18", encoder_weights=None, classes=3),
    "transformers' UperNet": uper_net,
}


@pytest.mark.parametrize("name", REAL)
def test_networks_that_no_graph_can_be_made_of(name):
    def logits(model):
        with torch.no_grad():
            output = model(x)
        return output if isinstance(output, torch.Tensor) else output.logits

    torch.manual_seed(0)
    x, net = torch.rand(1, 3, 128, 128), REAL[name]().eval()
    plain = logits(net)
    converted = guided(net, example_inputs=x, guide_scale=10.0)
    plan = hotswap.status(converted).plan
    assert "enlargements not by fx" in str(plan)
    assert len(plan.resizes) > 2
    assert (logits(converted) - plain).norm() > 1e-4 * plain.norm()
    for resize in plan.resizes:
        converted.get_submodule(resize.layer_path).guide_scale = 0.0
    torch.testing.assert_close(logits(converted), plain)
    assert torch.equal(logits(hotswap.revert(converted)), plain)


class SharedActivation(nn.Module):
    """One activation module for all; where the image is wide it is called once more, before the guide's."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.coarse = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 2, 3, 2, 1)
        self.act = nn.Sigmoid()

    def forward(self, x):
        guide, more = self.a(x), 0
        if x.mean() < 10 and x.shape[3] > 20:
            more = self.act(self.b(x))
        y = self.coarse(self.act(guide) + more)
        return F.interpolate(y, x.shape[2:], mode="bilinear")


def test_an_activation_that_is_called_otherwise_at_another_size_is_not_taken_for_the_guides():
    options = {"check": False, "example_inputs": torch.rand(1, 3, 16, 16)}
    converted = hotswap.convert(SharedActivation().eval(), "resize_1", "a", **options)
    converted(torch.rand(1, 3, 18, 20))
    with pytest.raises(
        hotswap.HotswapError, match="'act', which is called 2 times between it and target 'F.inter.* was 1 times"
    ):
        converted(torch.rand(1, 3, 16, 24))
