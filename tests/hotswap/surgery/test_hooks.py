"""method="hooks": the same plans by other means, and nothing left of a pass when it is over."""

import copy
import gc
import pickle
import threading
import weakref

import networks
import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import conv
from swap_by_hand import close, pac, swap
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import hotswap
from hotswap.surgery import passes
from hotswap.surgery.install import records


@pytest.fixture
def image():
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def by_hooks(net, targets="target", guide="guide", **kwargs):
    return swap(net, targets, guide, method="hooks", **kwargs)


def relay(converted):
    return next(record.steering.relay for _, _, record in records(converted))


def nothing_is_kept(converted):
    return not relay(converted)._frames


class Stages(nn.Module):
    """guide, activation and targets in parts that a user may call, or checkpoint, apart."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(3), nn.ReLU())
        self.first = nn.Sequential(conv(), nn.ReLU(inplace=True), conv())
        self.second = nn.Sequential(conv(), nn.ReLU(), conv())
        self.third = nn.Sequential(nn.ReLU(), conv())

    def forward(self, x):
        return self.third(self.second(self.first(self.stem(x))))

    def forward_features(self, x):
        return self.second(self.first(self.stem(x)))


GUIDE, TARGETS = "first.0", ("first.2", "second.2")


def staged(**kwargs):
    torch.manual_seed(3)
    return by_hooks(Stages(), TARGETS, GUIDE, **kwargs)


def staged_expected(net, x):
    g = F.relu(net.first[0](net.stem(x)))
    y = pac(net.first[2], g, g)
    return net.third(pac(net.second[2], F.relu(net.second[0](y)), g))


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
    alive = lambda: [kept for refs in relay(converted)._kept.values() for kept in refs if kept() is not None]  # noqa: E731
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


def test_a_network_called_inside_itself(image):
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.guide, self.target = conv(3), conv()

        def forward(self, x):
            g = self.guide(x)
            coarse = F.interpolate(self(x[..., ::2, ::2]), x.shape[2:]) if x.shape[2] > 8 else 0
            return self.target(g) + coarse

    net = Pyramid()
    converted = swap(net)
    small = image[..., ::2, ::2]
    a, b = net.guide(image), net.guide(small)
    expected = pac(net.target, a, a) + F.interpolate(pac(net.target, b, b), image.shape[2:])
    assert hotswap.status(converted).plan.method == "hooks"
    close(converted(image), expected)
    assert nothing_is_kept(converted)


def together(calls):
    """Results of functions run in threads that wait for each other at every guide."""
    results, errors = [None] * len(calls), []

    def run(index):
        try:
            results[index] = calls[index]()
        except Exception as error:  # noqa: BLE001 (shown by the caller)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return results


def test_threads_do_not_see_each_others_guides():
    converted = staged()
    images = [torch.randn(2, 3, 12, 10) for _ in range(4)]
    expected = [converted(x) for x in images]
    barrier = threading.Barrier(4)
    handle = converted.second[0].register_forward_pre_hook(lambda *a: (barrier.wait(20), None)[1])
    results = together([lambda x=x: converted(x) for x in images])
    features = together([lambda x=x: converted.third(converted.forward_features(x)) for x in images])
    handle.remove()
    for ours, also, alone in zip(results, features, expected, strict=True):
        close(ours, alone)
        close(also, alone)
    assert nothing_is_kept(converted)


def test_replicas_of_data_parallel_share_hooks_but_no_guides():
    """What nn.DataParallel does, without the GPUs it asks for."""
    converted = staged()

    def replicate(module):
        replica = module._replicate_for_data_parallel()
        replica._parameters = dict(module._parameters)
        replica._modules = {name: replicate(child) for name, child in module._modules.items()}
        return replica

    images = [torch.randn(2, 3, 12, 10) for _ in range(3)]
    replicas = [replicate(converted) for _ in images]
    results = together([lambda x=x, m=m: m(x) for x, m in zip(images, replicas, strict=True)])
    for ours, x in zip(results, images, strict=True):
        close(ours, converted(x))


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
        assert relay(twin) is not relay(converted)
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


# --- activation checkpointing -----------------------------------------------------------------------------


class Checkpointed(Stages):
    """Runs parts of itself again in the backward."""

    def __init__(self, parts, reentrant, frozen=False):
        super().__init__()
        self.parts, self.reentrant = parts, reentrant
        if frozen:
            for module in (self.stem, self.first[0]):
                module.requires_grad_(False)

    def forward(self, x):
        for name, part in self.named_children():
            x = checkpoint(part, x, use_reentrant=self.reentrant) if name in self.parts else part(x)
        return x


def gradients(net, x):
    for parameter in net.parameters():
        parameter.grad = None
    net(x).square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [("second",), ("first",), ("first", "second", "third")])
def test_checkpointed_parts_read_the_guide_of_their_pass(parts, image):
    torch.manual_seed(3)
    converted = by_hooks(Checkpointed(parts, reentrant=False), TARGETS, GUIDE)
    expected = gradients(staged(), image)
    for _ in range(2):
        found = gradients(converted, image)
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            close(gradient, expected[name])
        assert nothing_is_kept(converted)


def test_two_passes_before_one_backward_of_checkpointed_parts_are_refused_where_guides_could_be_confused(image):
    converted = by_hooks(Checkpointed(("second",), reentrant=False), TARGETS, GUIDE)
    with pytest.raises(hotswap.HotswapError, match="2 passes wait for their backward.*call backward after each pass"):
        (converted(image) + converted(-image)).sum().backward()
    whole = by_hooks(Checkpointed(("first", "second"), reentrant=False), ("first.2",), GUIDE)
    (whole(image) + whole(-image)).sum().backward()  # the guide is run again too
    assert nothing_is_kept(whole)


def test_reentrant_checkpoints(image):
    torch.manual_seed(3)
    whole = by_hooks(Checkpointed(("first",), reentrant=True), ("first.2",), GUIDE)
    torch.manual_seed(3)
    plain = by_hooks(Stages(), ("first.2",), GUIDE)
    expected = gradients(plain, image)
    for name, gradient in gradients(whole, image).items():
        close(gradient, expected[name])
    assert nothing_is_kept(whole)
    apart = by_hooks(Checkpointed(("second",), reentrant=True), TARGETS, GUIDE)
    with pytest.raises(hotswap.HotswapError, match="reentrant activation checkpointing.*use_reentrant=False"):
        gradients(apart, image)


def test_checkpoint_around_the_network(image):
    converted = staged()
    expected = gradients(converted, image)
    for reentrant in (False, True):
        found = gradients(lambda_module(converted, reentrant), image)
        for name, gradient in found.items():
            close(gradient, expected[name.removeprefix("net.")])
        assert nothing_is_kept(converted)


def lambda_module(net, reentrant):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return checkpoint(self.net, x.requires_grad_(), use_reentrant=reentrant)

    return Around()


def test_checkpoint_sequential(image):
    net = nn.Sequential(conv(3), nn.ReLU(), conv(), nn.ReLU(), conv(), nn.ReLU(), conv())
    converted = by_hooks(net, ("4", "6"), "2")
    expected = gradients(converted, image)

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = converted

        def forward(self, x):
            return checkpoint_sequential(self.net, 3, x, use_reentrant=False)

    for name, gradient in gradients(Around(), image).items():
        close(gradient, expected[name.removeprefix("net.")])


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
