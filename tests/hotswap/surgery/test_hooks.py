"""method="hooks": the same plans by other means, and nothing left of a pass when it is over."""

import copy
import gc
import pickle
import weakref

import networks
import pytest
import torch
import torch.nn.functional as F
import torchvision
from by_hooks import GUIDE, TARGETS, Stages, by_hooks, nothing_is_kept, passes_of, staged, staged_expected
from swap_by_hand import close, pac, swap
from torch import nn

import hotswap
from hotswap.surgery import passes
from hotswap.surgery.install import records

# --- the same plan --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "targets", "guide"),
    [
        (networks.Plain, "target", "guide"),
        (networks.InPlaceAfterGuide, "target", "guide"),
        (networks.InPlaceResidual, "target", "guide"),
        (networks.SharedHead, "head", "guide"),
        (networks.TiedBranches, "right.c", "guide"),
        (networks.Constants, "target", "guide"),
        (networks.Methods, "target", "guide"),
        (networks.Containers, "blocks.1.0", "blocks.0.0"),
        (networks.Plain, "target", "input"),
        (networks.Plain, "target", ["guide", "input"]),
    ],
)
@pytest.mark.parametrize("after_activation", [True, False])
def test_hooks_compute_what_the_graph_computes(make, targets, guide, after_activation, image):
    # Functions are no modules: where the activation is one, hooks take the guide before it, and say so.
    functional = make not in (networks.InPlaceResidual, networks.Containers)
    net = make().eval()
    caught = by_hooks(net, targets, guide, after_activation=after_activation)
    traced = swap(net, targets, guide, method="fx", after_activation=after_activation and not functional)
    for ours, theirs in zip(flat(caught(image)), flat(traced(image)), strict=True):
        close(ours, theirs)
    notes = " ".join(hotswap.status(caught).plan.notes)
    assert ("is a function, relu" in notes) == (after_activation and functional and guide != "input")
    assert nothing_is_kept(caught)


def flat(output):
    return output if isinstance(output, tuple) else (output,)


@torch.no_grad()
def test_a_guide_is_caught_after_norm_residual_sum_and_activation():
    net = torchvision.models.resnet18(num_classes=3).eval()
    image = torch.randn(1, 3, 64, 64)
    caught, traced = (hotswap.convert(net, guide_scale=1.0, method=m) for m in ("hooks", "fx"))
    plan = hotswap.status(caught).plan
    # The block calls one activation twice, and the guide comes before the second call.
    assert {swap.taps for swap in plan.swaps} == {(("layer1.1.relu", 0),)}
    assert plan.method == "hooks"
    close(caught(image), traced(image))
    assert not torch.allclose(caught(image), net(image))
    assert list(caught.state_dict()) == list(net.state_dict())
    assert type(caught) is type(net)


def test_auto_takes_hooks_where_the_code_cannot_be_traced(image):
    net = networks.DataDependent().eval()
    converted = swap(net)
    plan = hotswap.status(converted).plan
    assert plan.method == "hooks"
    assert any("not by fx: DataDependent.forward cannot be traced" in note for note in plan.notes)
    x = -image if image.sum() > 0 else image
    raw = net.guide(F.relu(net.stem(x)))
    close(converted(image), net.head(F.relu(pac(net.target, net.pool(F.relu(raw)), raw))))
    assert hotswap.status(swap(networks.Plain())).plan.method == "fx"


def test_auto_takes_hooks_where_the_network_calls_its_parts_with_other_arguments(image):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = networks.Optional()

        def forward(self, x):
            return self.part(x, scale=2.0)

    converted = swap(Masked(), "part.target", "part.guide")
    assert hotswap.status(converted).plan.method == "hooks"
    with pytest.raises(hotswap.HotswapError, match="scale=1.0 alone"):
        swap(Masked(), "part.target", "part.guide", method="fx")
    raw = converted.part.guide(image)
    close(converted(image), 2 * pac(converted.part.target, F.relu(raw), raw))


def test_gradients_reach_weights_guide_and_input(image):
    net = Stages()
    results = []
    for method in ("hooks", "fx"):
        converted = swap(net, TARGETS, GUIDE, method=method)
        leaf = image.clone().requires_grad_()
        converted(leaf).square().sum().backward()
        results.append([leaf.grad, *(p.grad for p in converted.parameters())])
    for ours, theirs in zip(*results, strict=True):
        close(ours, theirs)


# --- passes ---------------------------------------------------------------------------------------------


def test_other_methods_work_and_hold_no_guide_when_its_last_target_has_read_it(image):
    converted = staged()
    expected = staged_expected(converted_plain(converted), image)
    close(converted.third(converted.forward_features(image)), expected)
    assert nothing_is_kept(converted)


def converted_plain(converted):
    return hotswap.revert(converted)


@torch.no_grad()
def test_nothing_of_a_pass_outlives_it(image, monkeypatch):
    caught = []
    copied = passes.guide_copy
    monkeypatch.setattr(passes, "guide_copy", lambda *a: caught.append(weakref.ref(g := copied(*a))) or g)
    converted = staged()
    caught.clear()
    converted(image)
    converted.forward_features(image)
    gc.collect()
    assert len(caught) == 2
    assert all(guide() is None for guide in caught)


def test_a_guide_lives_as_long_as_the_graph_that_needs_it(image):
    converted = staged()
    alive = lambda: [kept for refs in passes_of(converted)._kept.values() for kept in refs if kept() is not None]  # noqa: E731
    out = converted(image)
    assert len(alive()) == 1
    out.sum().backward()
    assert not alive()
    out = converted(image)
    out.sum().backward(retain_graph=True)
    assert len(alive()) == 1
    del out
    assert not alive()


def test_an_exception_half_way_leaves_no_guide(image):
    converted = staged()
    handle = converted.second[0].register_forward_pre_hook(lambda *a: 1 / 0)
    for enter in (converted, converted.forward_features):
        with pytest.raises(ZeroDivisionError):
            enter(image)
    handle.remove()
    close(converted(image), staged_expected(converted_plain(converted), image))
    assert nothing_is_kept(converted)
    with pytest.raises(hotswap.HotswapError, match="target 'second.2' was called without its guide 'first.0'"):
        converted.second(converted.stem(image))


def test_a_guide_of_another_batch_is_refused(image):
    with pytest.raises(hotswap.HotswapError, match="batch size 2, got 1"):
        by_hooks(networks.Folded())


def test_a_guide_called_twice_before_its_target_is_refused():
    x = torch.empty(1, 3, 8, 8)
    with pytest.raises(hotswap.HotswapError, match="'guide' is called twice before a target reads it"):
        by_hooks(networks.Siamese(), example_inputs=(x, x))


def test_copies_share_nothing(image):
    converted = staged()
    expected = converted(image)
    for twin in (copy.deepcopy(converted), pickle.loads(pickle.dumps(converted))):
        assert passes_of(twin) is not passes_of(converted)
        close(twin(image), expected)
        twin.first[0].weight.data.zero_()
        close(converted(image), expected)
        assert hotswap.status(twin).plan == hotswap.status(converted).plan


@pytest.mark.parametrize("sequential", [False, True])
def test_compile_in_one_graph(image, sequential):
    converted = staged()
    run = converted.forward_features if sequential else converted
    expected = run(image)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    close(compiled(image), expected)
    assert nothing_is_kept(converted)
    compiled(image).sum().backward()
    assert converted.first[0].weight.grad.abs().max() > 0


def test_export(image):
    converted = staged()
    auto = torch.export.Dim.AUTO
    program = torch.export.export(converted, (image,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    larger = torch.randn(3, 3, 20, 18)
    close(program.module()(larger), converted(larger))


# --- afterwards -------------------------------------------------------------------------------------------


def test_calibrate_verify_save_load_and_revert(image, tmp_path):
    net = Stages().eval()
    converted = hotswap.convert(net, TARGETS, GUIDE, method="hooks", learn_scale=True, example_inputs=image)
    hotswap.calibrate(converted, [image], deviation=0.2)
    check = hotswap.verify(converted, [image])
    assert all(abs(target.deviation - 0.2) < 0.02 for target in check.targets)
    assert check.output_max_abs > 0
    hotswap.save(converted, tmp_path / "a.safetensors")
    again = hotswap.load(tmp_path / "a.safetensors", model=net)
    assert hotswap.status(again).plan.method == "hooks"
    assert [s.taps for s in hotswap.status(again).plan.swaps] == [(("first.1", 0),)] * 2
    close(again(image), converted(image))
    reverted = hotswap.revert(converted)
    assert torch.equal(reverted(image), net(image))
    for module in reverted.modules():
        for name in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_forward_pre_hooks_with_kwargs",
            "_forward_hooks_always_called",
        ):
            assert not getattr(module, name)
    assert [type(m) for m in reverted.modules()] == [type(m) for m in net.modules()]
    assert not records(reverted)


def test_hooks_of_the_user_stay(image):
    net = Stages()
    seen = []
    net.second[2].register_forward_hook(lambda m, a, out: seen.append(out.shape))
    converted = by_hooks(net, TARGETS, GUIDE)
    seen.clear()
    converted(image)
    hotswap.revert(converted)(image)
    assert len(seen) == 2


def test_a_network_wrapped_after_conversion_is_still_known(image):
    converted = staged()
    wrapper = nn.Sequential(nn.Identity(), converted)
    swaps = hotswap.status(wrapper).plan.swaps
    assert [(s.target, s.guide, s.taps) for s in swaps] == [
        (f"1.{target}", ("1.first.0",), (("1.first.1", 0),)) for target in TARGETS
    ]
    close(copy.deepcopy(wrapper)(image), converted(image))
    assert hotswap.status(hotswap.revert(wrapper)).plan is None


def test_autocast_and_inference_mode(image):
    converted = staged()
    expected = converted(image)
    with torch.inference_mode():
        close(converted(image), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (converted(image).float() - expected).norm() < 0.02 * expected.norm()


class SharedActivation(nn.Module):
    """One activation module for all; at some sizes it is called once more, before the guide's."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.target = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 3, 4))
        self.act = nn.Sigmoid()

    def forward(self, x):
        guide, more = self.a(x), 0
        if x.shape[3] > 20:
            more = self.act(self.b(x))
        return self.target(self.act(guide) + more)


def test_an_activation_that_is_called_otherwise_at_another_size_is_not_taken_for_the_guides():
    options = {"method": "hooks", "check": False, "example_inputs": torch.rand(1, 3, 16, 16)}
    converted = hotswap.convert(SharedActivation().eval(), "target", "a", **options)
    converted(torch.rand(1, 3, 18, 20))
    with pytest.raises(hotswap.HotswapError, match="'act', which is called 2 times between it and .* was 1 times"):
        converted(torch.rand(1, 3, 16, 24))


class Skipping(Stages):
    """Leaves the guide out, or stops half way, if so told."""

    def features(self, x, *, first=True, second=True):
        x = self.stem(x)
        x = self.first(x) if first else x
        return self.second(x) if second else x


@torch.no_grad()
def test_a_method_that_leaves_the_guide_out_does_not_get_that_of_the_call_before(image):
    torch.manual_seed(3)
    converted = by_hooks(Skipping(), TARGETS, GUIDE)
    expected = converted.features(image)
    converted.features(2 * image, second=False)  # its guide is not read to the end
    with pytest.raises(hotswap.HotswapError, match="target 'second.2' was called without its guide 'first.0'"):
        converted.features(image, first=False)
    converted.features(2 * image, second=False)
    close(converted.features(image), expected)
    assert nothing_is_kept(converted)
    copied = copy.deepcopy(converted)
    copied.features(image, second=False)
    with pytest.raises(hotswap.HotswapError, match="without its guide"):
        copied.features(image, first=False)


@torch.no_grad()
def test_parts_called_one_by_one_read_a_guide_no_more_often_than_the_network_does(image):
    torch.manual_seed(3)
    converted = by_hooks(Stages(), ["second.2", "third.1"], GUIDE)
    features = converted.second(converted.first(converted.stem(image)))
    with pytest.raises(hotswap.HotswapError, match="target 'second.2' was called without its guide 'first.0'"):
        converted.second(converted.stem(2 * image))
    close(converted.third(features), converted(image))
