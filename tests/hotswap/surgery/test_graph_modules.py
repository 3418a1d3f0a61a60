"""Networks that are GraphModules, or hold some: as ONNX importers, symbolic_trace and create_feature_extractor give."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from networks import conv
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import hotswap
from hotswap.network.copying import deep_copy

IMAGE = torch.linspace(-1, 1, 3 * 16 * 16).sin().view(1, 3, 16, 16)


class Resize(nn.Module):
    """Cannot be traced: it asks for the type of its input."""

    def forward(self, x):
        if not torch.is_floating_point(x) or int(x.shape[-1]) > 1000:
            return x
        return F.interpolate(x, size=(16, 16), mode="bilinear", align_corners=True)


class Net(nn.Module):
    """A guide, a target and an enlargement, by a module or by a function."""

    def __init__(self, enlarge=None):
        super().__init__()
        self.guide, self.norm, self.down, self.target = conv(3), nn.BatchNorm2d(8), conv(stride=2), conv(8, 2)
        self.enlarge = enlarge

    def forward(self, x):
        y = self.target(F.relu(self.down(F.relu(self.norm(self.guide(x))))))
        if self.enlarge is not None:
            return self.enlarge(y)
        return F.interpolate(y, size=(16, 16), mode="bilinear", align_corners=True)


class Twice(Net):
    """Enlarges by a module that cannot be traced, and by functions, of which only the second enlarges."""

    def __init__(self):
        super().__init__(Resize())

    def forward(self, x):
        y = F.interpolate(super().forward(x), size=(8, 8), mode="bilinear")
        return F.interpolate(y, scale_factor=2, mode="bilinear")


def bilinear():
    return nn.Upsample(scale_factor=2, mode="bilinear")


class AllLeaves(torch.fx.Tracer):
    """Keeps every module closed, as ONNX importers do."""

    def is_leaf_module(self, m, module_qualified_name):
        return True


def with_leaves(model):
    return torch.fx.GraphModule(model, AllLeaves().trace(model)).eval()


class Around(nn.Module):
    """Holds one."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.last = inner, conv(2, 2)

    def forward(self, x):
        return self.last(self.inner(x))


KINDS = {
    "traced": lambda: torch.fx.symbolic_trace(Net()),
    "leaves": lambda: with_leaves(Net(Resize())),
    "upsample": lambda: torch.fx.symbolic_trace(Net(bilinear())),
    "extractor": lambda: create_feature_extractor(Net(), {"interpolate": "out"}),
    "nested": lambda: Around(torch.fx.symbolic_trace(Net())),
    "nested leaves": lambda: Around(with_leaves(Net(Resize()))),
    "nested extractor": lambda: Around(torch.fx.symbolic_trace(Net(torch.fx.symbolic_trace(bilinear())))),
    "mixed": lambda: with_leaves(Twice()),
}
TARGETS = {
    "convolution": (["target"], "guide"),
    "by image": (["target"], "input"),
    "both": (["target", "resize_*"], "input"),
}


def named(kind, targets, guide):
    inner = "inner." if kind.startswith("nested") else ""
    return [f"{inner}{t}" if t == "target" else t for t in targets], f"{inner}{guide}" if guide == "guide" else guide


def out(model, x=IMAGE):
    with torch.no_grad():
        y = model(x)
    return y["out"] if isinstance(y, dict) else y


def oracle(kind):
    """The same network as an ordinary one, with the same weights."""
    torch.manual_seed(0)
    enlarge = {"leaves": Resize(), "nested leaves": Resize(), "nested extractor": bilinear()}.get(kind)
    if kind == "upsample":
        enlarge = bilinear()
    net = Twice() if kind == "mixed" else Net(enlarge)
    return (Around(net) if kind.startswith("nested") else net).eval()


CASES = [
    *((kind, "both", "auto") for kind in KINDS),
    *((kind, "convolution", "auto") for kind in ("leaves", "extractor")),
    *((kind, "by image", "hooks") for kind in ("traced", "extractor", "nested leaves")),
]


@pytest.mark.parametrize(("kind", "wanted", "method"), CASES)
def test_it_is_swapped_as_the_ordinary_network_is(kind, wanted, method):
    torch.manual_seed(0)
    model, plain = KINDS[kind]().eval(), oracle(kind)
    targets, guide = named(kind, *TARGETS[wanted])
    options = {"guide_scale": 2.0, "method": method, "example_inputs": IMAGE, "after_activation": False}
    expected = out(hotswap.convert(plain, targets, guide, **options))
    before = out(model)
    torch.testing.assert_close(before, out(plain))
    swapped = hotswap.convert(model, targets, guide, **options)
    assert (out(swapped) - before).abs().max() > 1e-4
    torch.testing.assert_close(out(swapped), expected)
    torch.testing.assert_close(out(model), before, rtol=0, atol=0)
    for twin in (copy.deepcopy(swapped), deep_copy(swapped), copy.deepcopy(copy.deepcopy(swapped))):
        torch.testing.assert_close(out(twin), expected)
        assert hotswap.status(twin).plan == hotswap.status(swapped).plan
        assert not any(module.training for module in twin.modules())
    reverted = hotswap.revert(twin)
    torch.testing.assert_close(out(reverted), before, rtol=0, atol=0)
    torch.testing.assert_close(out(twin), expected)
    assert hotswap.convert(model, targets, guide, inplace=True, **options) is model
    torch.testing.assert_close(out(model), expected)
    assert hotswap.revert(model, inplace=True) is model
    torch.testing.assert_close(out(model), before, rtol=0, atol=0)
    torch.testing.assert_close(out(swapped), expected)


@pytest.mark.parametrize("kind", ["traced", "leaves", "mixed", "extractor", "nested"])
def test_it_is_calibrated_saved_and_loaded(kind, tmp_path):
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    targets, guide = named(kind, *TARGETS["both"])
    swapped = hotswap.convert(model, targets, guide, calibrate_on=[IMAGE], example_inputs=IMAGE, space=None)
    deviations = [target.deviation for target in hotswap.verify(swapped, [IMAGE]).targets]
    assert len(deviations) == (3 if kind == "mixed" else 2)
    assert all(0.2 < deviation < 0.6 for deviation in deviations)
    hotswap.save(swapped, tmp_path / "w.safetensors")
    fresh = deep_copy(model)
    nn.init.ones_(next(fresh.parameters()))
    loaded = hotswap.load(tmp_path / "w.safetensors", model=fresh, example_inputs=IMAGE)
    torch.testing.assert_close(out(loaded), out(swapped), rtol=0, atol=0)


def test_its_own_graph_is_guided():
    """So are its code, what is built on its graph, and what an interpreter makes of it."""
    model = torch.fx.symbolic_trace(Net()).eval()
    swapped = hotswap.convert(model, ["target", "resize_*"], "input", guide_scale=2.0, example_inputs=IMAGE)
    expected = out(swapped)
    assert "interpolate" in model.code
    assert "interpolate(" not in swapped.code
    with torch.no_grad():
        torch.testing.assert_close(torch.fx.Interpreter(swapped).run(IMAGE), expected)
    torch.testing.assert_close(out(torch.fx.GraphModule(swapped, swapped.graph)), expected)
    swapped.recompile()
    torch.testing.assert_close(out(swapped), expected)


@pytest.mark.parametrize("kind", ["traced", "extractor"])
def test_an_edit_of_its_graph_is_carried_out_and_no_longer_reverted(kind):
    model = KINDS[kind]().eval()
    swapped = hotswap.convert(model, "resize_*", "input", guide_scale=2.0, example_inputs=IMAGE)
    expected = out(swapped).exp()
    for graph in {id(x): x for x in vars(swapped).values() if isinstance(x, torch.fx.Graph)}.values():
        guided = next(node for node in graph.nodes if node.op == "call_module" and "hotswap" in str(node.target))
        with graph.inserting_after(guided):
            edited = graph.call_function(torch.exp, (guided,))
        guided.replace_all_uses_with(edited, delete_user_cb=lambda user, edited=edited: user is not edited)
    swapped.recompile()
    torch.testing.assert_close(out(swapped), expected)
    torch.testing.assert_close(out(copy.deepcopy(swapped)), expected)
    for verb in (hotswap.revert, lambda m: hotswap.verify(m, [IMAGE])):
        with pytest.raises(hotswap.HotswapError, match="was edited after it was swapped"):
            verb(swapped)
    torch.testing.assert_close(out(swapped), expected)


def test_a_graph_that_no_longer_guides_is_refused():
    model = torch.fx.symbolic_trace(Net()).eval()
    swapped = hotswap.convert(model, "resize_*", "input", guide_scale=2.0, example_inputs=IMAGE)
    expected = out(swapped)
    with pytest.raises(hotswap.HotswapError, match="must give the swapped .* its guide"):
        swapped.graph = copy.deepcopy(model.graph)
    torch.testing.assert_close(out(swapped), expected)
    torch.testing.assert_close(out(hotswap.revert(swapped)), out(model))


def test_a_graph_whose_code_is_older_is_not_gone_by():
    model = with_leaves(Net(nn.Upsample(scale_factor=2)))
    node = next(node for node in model.graph.nodes if node.target == "target")
    with model.graph.inserting_after(node):
        node.replace_all_uses_with(model.graph.call_function(torch.zeros_like, (node,)), lambda user: user.target != torch.zeros_like)  # fmt: skip
    with pytest.raises(hotswap.HotswapError, match=r"call its recompile\(\) first"):
        hotswap.convert(model, "target", "guide", method="fx", example_inputs=IMAGE)
    swapped = hotswap.convert(model, "target", "guide", guide_scale=0, example_inputs=IMAGE)
    torch.testing.assert_close(out(swapped), out(model))


class Switching(Net):
    """Does other things in training, and enlarges more often."""

    def forward(self, x):
        y = self.target(F.relu(self.down(F.relu(self.norm(self.guide(x))))))
        y = F.interpolate(y, size=(16, 16), mode="bilinear")
        return y * 2 if self.training else y


@pytest.mark.parametrize("training", [False, True])
def test_a_graph_for_each_mode_stays_with_its_mode(training):
    model = create_feature_extractor(Switching(), ["interpolate"])
    model.norm.eval()
    model.train(training)
    swapped = hotswap.convert(model, ["target", "resize_*"], "input", guide_scale=0, example_inputs=IMAGE)
    assert swapped.training is training
    for mode in (training, not training, training):
        model.train(mode)
        swapped.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(swapped(IMAGE)["interpolate"], model(IMAGE)["interpolate"])
    assert swapped.graph is (swapped.train_graph if training else swapped.eval_graph)


@pytest.mark.parametrize("kind", ["leaves", "upsample"])
def test_it_is_pickled_with_its_hooks_where_the_plain_one_is(kind):
    model = KINDS[kind]().eval()
    swapped = hotswap.convert(model, "target", "input", guide_scale=2.0, method="hooks", example_inputs=IMAGE)
    again = pickle.loads(pickle.dumps(swapped))
    torch.testing.assert_close(out(again), out(swapped))
    assert hotswap.status(again).plan == hotswap.status(swapped).plan
    torch.testing.assert_close(out(hotswap.revert(again)), out(model))


def test_a_rewritten_one_is_not_pickled():
    swapped = hotswap.convert(KINDS["traced"]().eval(), "target", "input", method="fx", example_inputs=IMAGE)
    with pytest.raises(hotswap.HotswapError, match=r"hotswap\.save the network"):
        pickle.dumps(swapped)


def test_a_copy_of_one_has_everything_that_it_has():
    model = create_feature_extractor(Net(), ["interpolate"]).eval()
    model.norm.train()
    model.pretrained_cfg = {"input_size": (3, 16, 16)}
    model.register_forward_hook(lambda *_: None)
    twin = deep_copy(model)
    assert [m.training for m in twin.modules()] == [m.training for m in model.modules()]
    assert twin.pretrained_cfg == model.pretrained_cfg
    assert twin.pretrained_cfg is not model.pretrained_cfg
    assert len(twin._forward_hooks) == 1
    assert type(twin) is not type(model)
    assert type(twin).__mro__[1:] == type(model).__mro__[1:]
    assert twin.graph.owning_module is twin
    torch.testing.assert_close(twin(IMAGE), model(IMAGE))
    twin.train()
    assert not model.training
    assert model.graph is model.eval_graph


class FromOnnx(nn.Module):
    """Reads the size that it enlarges to from a buffer, and takes one image at a time."""

    def __init__(self):
        super().__init__()
        self.register_buffer("sizes", torch.tensor([1, 2, 16, 16]))

    def forward(self, x):
        sizes = self.sizes.tolist()
        if list(x.shape)[:2] != sizes[:2]:
            raise NotImplementedError("one image")
        return F.interpolate(x, size=sizes[2:], mode="bilinear", align_corners=True)


def test_what_reads_sizes_from_its_buffers_is_exported(tmp_path):
    model = with_leaves(Net(FromOnnx()))
    swapped = hotswap.convert(model, "resize_*", "input", guide_scale=2.0, example_inputs=IMAGE)
    before = dict(swapped.named_buffers())
    made = hotswap.export(swapped, tmp_path / "w.pt2", example_inputs=IMAGE)
    assert made.inputs[0] in ((1, 3, 16, 16), (1, 3, "height", "width"))  # the second with torch 2.8
    assert all(x is before[name] for name, x in swapped.named_buffers())
    written = torch.export.load(tmp_path / "w.pt2").module()
    for x in (IMAGE, torch.rand(1, 3, 24, 20)) if "height" in made.inputs[0] else (IMAGE,):
        torch.testing.assert_close(written(x), out(swapped, x), rtol=1e-4, atol=1e-5)
