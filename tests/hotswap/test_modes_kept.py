"""No verb changes what a network is: modes, parameters, gradients, buffers and hooks, whether it succeeds or fails."""

import pytest
import torch
import torch.nn.functional as F
from networks import conv
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import hotswap
from benchmarks.coverage.state import State

IMAGE = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)


class Net(nn.Module):
    """A guide, a target and an enlargement, with a norm."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.relu = conv(3), nn.BatchNorm2d(8), nn.ReLU()
        self.down, self.target, self.head = conv(stride=2), conv(), conv(8, 2)
        self.unused = nn.Dropout()

    def forward(self, x):
        y = self.relu(self.norm(self.first(x)))
        return F.interpolate(self.head(self.target(self.down(y))), scale_factor=2, mode="bilinear")


class Nested(Net):
    """Holds a GraphModule with a graph for each mode, and one that enlarges."""

    def __init__(self):
        super().__init__()
        self.features = create_feature_extractor(Net(), {"target": "t"})
        self.enlarge = torch.fx.symbolic_trace(nn.Upsample(scale_factor=2, mode="bilinear"))

    def forward(self, x):
        return self.enlarge(self.head(self.target(self.features(x)["t"])))


def noted(module, *_):
    assert module is not None


def odd(model, training):
    """Modes mixed, some parameters frozen, a gradient here and there, hooks of every kind."""
    model.train(training)
    for module in list(model.modules())[1::2]:
        if not isinstance(module, torch.fx.GraphModule):  # torchvision's run another graph in another mode
            module.training = not module.training
    for index, p in enumerate(model.parameters()):
        p.requires_grad_(index % 3 != 0)
        if p.requires_grad:
            p.grad = torch.ones_like(p)
    relu = next(m for path, m in model.named_modules() if path.endswith(("relu", "norm")))
    relu.register_forward_hook(noted)
    relu.register_forward_pre_hook(noted, with_kwargs=False)
    relu.register_full_backward_hook(noted)
    relu.register_full_backward_pre_hook(noted)
    relu.register_state_dict_pre_hook(noted)
    relu.register_load_state_dict_post_hook(noted)
    relu._register_state_dict_hook(noted)
    relu._register_load_state_dict_pre_hook(noted)
    return model


NETWORKS = {
    "training": lambda: odd(Net(), True),
    "evaluation": lambda: odd(Net(), False),
    "a feature extractor": lambda: odd(create_feature_extractor(Net(), {"interpolate": "out"}), False),
    "a feature extractor, training": lambda: odd(create_feature_extractor(Net(), {"interpolate": "out"}), True),
    "traced": lambda: odd(torch.fx.symbolic_trace(Net()), False),
    "nested": lambda: odd(Nested(), False),
}


@pytest.fixture(params=NETWORKS)
def model(request):
    return NETWORKS[request.param]()


def kept(model, verb, *, fails=None):
    """Run a verb on a network, and compare."""
    before = State(model)
    if fails is None:
        result = verb(model)
    else:
        with pytest.raises((hotswap.HotswapError, RuntimeError), match=fails):
            verb(model)
        result = None
    assert before.differences(model) == []
    return result


@pytest.mark.parametrize("method", ["auto", "hooks"])
@pytest.mark.parametrize("inplace", [False, True])
def test_converting_keeps_what_a_network_is(model, method, inplace):
    before, plain = State(model), type(model)
    options = {"method": method, "example_inputs": IMAGE, "guide_scale": 0.5, "inplace": inplace}
    targets, guide = ["target", "resize_*"], "input"
    swapped = hotswap.convert(model, targets, guide, **options)
    assert before.differences(model) == []
    assert before.differences(swapped, copied=not inplace) == []
    if inplace:
        assert swapped is model
        assert issubclass(type(model), plain)
    reverted = hotswap.revert(swapped, inplace=inplace)
    assert before.differences(reverted, copied=not inplace) == []
    assert hotswap.status(reverted).plan is None


def test_verbs_keep_a_plain_network(model, tmp_path):
    plan = kept(model, lambda m: hotswap.plan(m, ["target", "resize_*"], "input", example_inputs=IMAGE))
    kept(model, lambda m: hotswap.inspect(m, IMAGE))
    kept(model, hotswap.status)
    kept(model, lambda m: hotswap.apply(m, plan, example_inputs=IMAGE))
    kept(model, lambda m: hotswap.plan(m, "nothing", "input", example_inputs=IMAGE), fails="nothing")
    kept(model, lambda m: hotswap.convert(m, "target", "head", example_inputs=IMAGE), fails="head")
    kept(model, lambda m: hotswap.convert(m, "target", "head", example_inputs=IMAGE, inplace=True), fails="head")
    bad = {"calibrate_on": [torch.zeros(1, 5, 16, 16)], "example_inputs": IMAGE, "inplace": True}
    kept(model, lambda m: hotswap.convert(m, "target", "input", **bad), fails="5")
    kept(model, hotswap.revert, fails="nothing")
    kept(model, lambda m: hotswap.verify(m, [IMAGE]), fails="nothing")


def test_verbs_keep_a_swapped_network(model, tmp_path):
    swapped = hotswap.convert(model, ["target", "resize_*"], "input", example_inputs=IMAGE, calibrate_on=[IMAGE])
    kept(swapped, lambda m: hotswap.calibrate(m, [IMAGE]))
    kept(swapped, lambda m: hotswap.verify(m, [IMAGE]))
    kept(swapped, hotswap.status)
    kept(swapped, lambda m: hotswap.inspect(m, IMAGE))
    kept(swapped, lambda m: hotswap.save(m, tmp_path / "w.safetensors"))
    before = State(model)
    loaded = kept(model, lambda m: hotswap.load(tmp_path / "w.safetensors", model=m))
    assert before.differences(loaded, copied=True) == []
    kept(swapped, lambda m: hotswap.calibrate(m, [torch.zeros(1, 5, 16, 16)]), fails="5")
    kept(swapped, hotswap.revert)


@pytest.mark.parametrize("lazy", [lambda: nn.LazyConv2d(8, 1), lambda: nn.LazyInstanceNorm2d(affine=True)])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_network_that_has_not_run_yet_is_left_to_run(lazy, inplace):
    """Its first run, were it on tensors without numbers, would leave parameters without numbers."""
    net = nn.Sequential(conv(3), lazy(), nn.ReLU(), conv())
    with pytest.raises(hotswap.HotswapError, match="'1.weight' is not initialised yet, .* run the network once"):
        hotswap.convert(net, "3", "0", example_inputs=IMAGE, inplace=inplace)
    with pytest.raises(hotswap.HotswapError, match="'1.weight' is not initialised yet"):
        hotswap.inspect(net, IMAGE)
    assert net[1].has_uninitialized_params()
    plain = net(IMAGE)
    swapped = hotswap.convert(net, "3", "0", example_inputs=IMAGE, guide_scale=0.0, inplace=inplace)
    torch.testing.assert_close(swapped.train()(IMAGE), plain)


@pytest.mark.parametrize("name", ["training", "nested"])
def test_what_takes_longer_keeps_a_network_too(name, tmp_path):
    swapped = hotswap.convert(
        NETWORKS[name](), ["target", "resize_*"], "input", guide_scale=0.5, example_inputs=IMAGE
    )
    kept(swapped, lambda m: hotswap.export(m, tmp_path / "w.pt2", example_inputs=IMAGE, dynamic=False))
    kept(swapped, lambda m: hotswap.report(m, IMAGE, tmp_path / "w.html"))
