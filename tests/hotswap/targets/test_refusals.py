"""What cannot be swapped is refused before anything changes, with the reason and the nearest choice."""

import threading

import networks
import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks import Plain, conv, thin_vgg11, with_target
from torch import nn

import hotswap


def small_vgg():
    """VGG-11 with few channels and a small classifier: the real one is half a gigabyte."""
    with torch.device("meta"):
        net = torchvision.models.vgg11()
    net.features, net.classifier = thin_vgg11(), nn.Sequential(nn.Linear(8 * 7 * 7, 2))
    return net


VGG = small_vgg()  # every refusal leaves it as it was, which is what is tested


class Many(nn.Module):
    def forward(self, *images):
        return self.target(F.relu(self.guide(images[0])))

    def __init__(self):
        super().__init__()
        self.guide, self.target = conv(3), conv()


def hooked():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.guide, self.inner = conv(3), nn.Sequential(conv(), nn.ReLU())
            self.inner.register_forward_hook(lambda *a: None)

        def forward(self, x):
            return self.inner(F.relu(self.guide(x)))

    return Outer()


def replaced_forward():
    net = Plain()
    net.forward = net.forward
    return net


def siamese_without_data_flow():
    class Net(networks.Siamese):
        def forward(self, x):
            self.guide(x), self.guide(-x)
            return self.target(torch.cat([x, x, x[:, :2]], 1))

    return Net()


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.target = conv(3)

    def forward(self, x):
        return self.target(x.unflatten(2, (12, 12)))


class NoInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.target = conv(3)
        self.register_buffer("latent", torch.randn(1, 3, 12, 12))

    def forward(self):
        return self.target(self.latent)


class NamedInput(nn.Module):
    def __init__(self):
        super().__init__()
        self.input, self.target = conv(3), conv()

    def forward(self, x):
        return self.target(F.relu(self.input(x)))


NAMED = NamedInput()
REFUSALS = {
    # By name: network, targets, guide, keywords, the start of the message.
    "no model": ("vgg", "a", "b", {}, "model must be a torch.nn.Module, got a str"),
    "unknown target": (VGG, ["conv3_9"], "conv2_1", {}, "target 'conv3_9' is no module path or alias.*closest: conv3_1, conv3_2"),
    "unknown path": (VGG, ["features.99"], "conv2_1", {}, "closest: features.9"),
    "unknown guide": (VGG, ["conv3_2"], "conv2", {}, "guide 'conv2' is no module path or alias.*closest: conv2_1"),
    "targets of a wrong type": (VGG, 3, "conv2_1", {}, "targets must be .* got a int"),
    "target of another network": (VGG, conv(), "conv2_1", {}, "target of class Conv2d is no module of this network"),
    "guide of another network": (VGG, ["conv3_1"], nn.ReLU(), {}, "guide of class ReLU is no module of this network"),
    "the network as guide": (VGG, ["conv3_1"], VGG, {}, "guide '' contains target"),
    "empty guide": (VGG, ["conv3_1"], [], {}, "guide must name at least one source, got an empty list"),
    "guide within a list": (VGG, ["conv3_1"], ["conv2_1", "conv9_1"], {}, "guide 'conv9_1' is no module path or alias"),
    "late guide in a list": (VGG, ["conv3_1"], ["input", "conv3_2"], {}, "guide conv3_2 .* is computed after"),
    "target without guide": (VGG, "conv3_*", {"conv3_1": "conv2_1"}, {}, r"guide must have a key for target conv3_2"),
    "guide of no target": (
        VGG, "conv3_1", {"conv3_*": "conv2_1", "conv4_1": "input"}, {}, r"guide has 'conv4_1', which is none of the targets",
    ),
    "guide of a pattern without target": (VGG, "conv3_1", {"*": "input", "conv4_*": "input"}, {}, "'conv4_.' *, which is none"),
    "late guide of one target": (
        VGG, ["conv4_1", "conv3_1"], {"conv4_1": "conv3_2", "conv3_1": "conv3_2"}, {}, "conv3_2 .* is computed after target conv3_1",
    ),
    "input of no image": (Tokens(), "target", "input", {}, "guide 'input' must give a .* tensor, got a tensor of shape"),
    "no input": (NoInput(), "target", "input", {"example_inputs": ()}, "NoInput takes none"),
    "a module called input": (NAMED, "target", NAMED.input, {}, "as a guide that word is the image; rename it"),
    "no targets": (VGG, [], "conv2_1", {}, "at least one convolution"),
    "target of a wrong type": (VGG, [3], "conv2_1", {}, "target must be a string or a module, got a int"),
    "guide of a wrong type": (VGG, ["conv3_1"], None, {}, "guide must be a module path"),
    "glob without match": (VGG, "layer4.*", "conv2_1", {}, "target 'layer4.*' matched no convolution"),
    "regex without match": (VGG, "re:layer[4]", "conv2_1", {}, "matched no convolution"),
    "regex that does not compile": (VGG, "re:(", "conv2_1", {}, "no valid regular expression"),
    "not a convolution": (VGG, "classifier.0", "conv2_1", {}, "is a Linear.*nearest that can is conv5_2"),
    "1x1 window": (Plain(), "head", "guide", {}, "1x1.*nearest that can is .*target"),
    "only 1x1 match": (Plain(), "hea*", "guide", {}, "matched only head, where its window is 1x1"),
    "even window": (with_target(nn.Conv2d(8, 8, 2)), "target", "guide", {}, "even and has no centre"),
    "guide after target": (VGG, ["conv2_1"], "conv3_1", {}, "computed after target conv2_1.*before it is conv1_1"),
    "guide is target": (VGG, ["conv2_1"], "conv2_1", {}, r"guide conv2_1 \(features.3\) is target"),
    "guide contains target": (VGG, ["conv2_1"], "features", {}, "guide 'features' contains target"),
    "guide never called": (with_target(conv()), "target", "spare", {}, "guide 'spare' is never called"),
    "target never called": (with_target(conv()), "spare", "guide", {}, "the network never calls it"),
    "guide is a tuple": (networks.TupleGuide(), "target", "block", {}, "must give a .* tensor, got a tuple"),
    "guide is a token sequence": (
        networks.TupleGuide(tokens=True), "target", "block", {}, r"tensor, got a tensor of shape \[1, 144, 8\]",
    ),
    "guide of another batch": (networks.Folded(), "target", "guide", {}, "batch size 2, got 1"),
    "data-dependent": (networks.DataDependent(), "target", "guide", {"method": "fx"}, "cannot be traced by torch.fx"),
    "any number of inputs": (Many(), "target", "guide", {"method": "fx"}, r"takes \*images"),
    "hooks on the way": (hooked(), "inner.0", "guide", {"method": "fx"}, "'inner' has hooks"),
    "forward replaced": (replaced_forward(), "target", "guide", {"method": "fx"}, "forward replaced on the instance"),
    "script": (
        nn.Sequential(conv(3), nn.ReLU(), torch.jit.script(nn.Sequential(conv()))), "2.0", "0", {}, "ScriptModule|is a Recursive"
    ),
    "ambiguous guide calls": (siamese_without_data_flow(), "target", "guide", {"method": "fx"}, "called 2 times"),
    "ambiguous guide calls, by hooks": (siamese_without_data_flow(), "target", "guide", {}, "called twice before a target"),
    "auto on few stages": (Plain(), "auto", "auto", {}, "three output sizes or more, and this network has 2"),
    "no convolution": (nn.Linear(3, 3), "auto", "auto", {}, "no 2-D convolution"),
    "method": (VGG, "auto", "auto", {"method": "magic"}, "method must be one of auto, fx, hooks, got 'magic'"),
    "negative scale": (VGG, "auto", "auto", {"guide_scale": -1}, "guide_scale must be a number >= 0, got -1"),
    "scale of a wrong type": (VGG, "auto", "auto", {"guide_scale": "big"}, "guide_scale must be a number"),
    "NaN scale": (VGG, "auto", "auto", {"guide_scale": float("nan")}, "guide_scale must be a number >= 0, got nan"),
    "zero scale to learn": (VGG, "auto", "auto", {"guide_scale": 0, "learn_scale": True}, "guide_scale must be > 0"),
    "resize": (VGG, "auto", "auto", {"resize": "cubic"}, "resize must be one of bilinear, area, nearest"),
    "inputs it does not take": (
        VGG, "auto", "auto", {"example_inputs": torch.empty(1, 5, 64, 64)}, "could not be run on fake inputs",
    ),
    "inputs of a wrong type": (VGG, "auto", "auto", {"example_inputs": "cat.png"}, "tensor or a tuple"),
}  # fmt: skip
for _net in (REFUSALS["guide never called"][0], REFUSALS["target never called"][0]):
    _net.spare = conv()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", REFUSALS)
def test_refused_in_one_line_and_nothing_changes(name, inplace):
    net, targets, guide, keywords, message = REFUSALS[name]
    is_module = isinstance(net, nn.Module)
    before = snapshot(net) if is_module else None
    if is_module and name != "no convolution" and not isinstance(net, torchvision.models.VGG):
        keywords = {
            "example_inputs": torch.empty(1, 3, *((144,) if isinstance(net, Tokens) else (12, 12)))
        } | keywords
    with pytest.raises(hotswap.HotswapError, match=message) as error:
        hotswap.convert(net, targets, guide, inplace=inplace, **keywords)
    assert "\n" not in str(error.value)
    if is_module:
        assert snapshot(net) == before


def snapshot(net):
    modules = [(path, type(m), m.training, sorted(m.__dict__), repr(m)) for path, m in net.named_modules()]
    return modules, {k: v.sum().item() for k, v in net.state_dict().items()}


def test_converting_the_same_targets_twice_is_refused():
    once = hotswap.convert(VGG)
    with pytest.raises(hotswap.HotswapError, match="these targets are swapped already .*name others"):
        hotswap.convert(once)
    with pytest.raises(hotswap.HotswapError, match="inplace must be False"):
        hotswap.convert(once, "conv3_1", calibrate_on=torch.zeros(1, 3, 64, 64), inplace=True)
    with pytest.raises(hotswap.HotswapError, match="converted already"):
        hotswap.apply(once, hotswap.status(once).plan)


def test_reverting_a_plain_network_is_refused():
    with pytest.raises(hotswap.HotswapError, match="nothing in this network is swapped"):
        hotswap.revert(VGG)


def test_a_network_that_cannot_be_copied_says_what_to_do():
    class Uncopyable(Plain):
        def __deepcopy__(self, memo):
            raise RuntimeError("handle")

    net = Uncopyable()
    with pytest.raises(hotswap.HotswapError, match="cannot be deep-copied .*pass inplace=True"):
        hotswap.convert(net, "target", "guide", example_inputs=torch.empty(1, 3, 8, 8))


def converted_on(net, image):
    return hotswap.convert(net, "target", "guide", calibrate_on=image, inplace=True)


@pytest.mark.parametrize("verb", [converted_on, hotswap.verify, hotswap.calibrate])
def test_a_network_that_no_plain_copy_can_be_made_of_says_what_is_in_the_way(verb):
    net = Plain()
    image = torch.rand(1, 3, 16, 16)
    if verb is not converted_on:
        hotswap.convert(net, "target", "guide", inplace=True)
    net.head.lock = threading.Lock()
    before = snapshot(net)
    with pytest.raises(hotswap.HotswapError, match=r"its 'head.lock' cannot be deep-copied \(TypeError: ") as error:
        verb(net, image)
    assert "\n" not in str(error.value)
    assert snapshot(net) == before


ENLARGING = nn.Sequential(conv(3, stride=2), nn.Upsample(scale_factor=2, mode="bilinear"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel": "nonsense"}, 'kernel must be "gaussian" or'),
        ({"kernel": 5}, 'kernel must be "gaussian" or'),
        ({"kernel": "inv_1_1_fixed"}, "kernel must be 'gaussian' where no convolution is a target"),
        ({"conserve": "bla"}, "conserve must be one of mean, window or None, got 'bla'"),
        ({"resize": "foo"}, "resize must be one of .*, got 'foo'"),
        ({"footprint": "2"}, "footprint must be one of 2, 4, 6, 8, or one of these for each step, got '2'"),
        ({"learn_scale": "yes"}, "learn_scale must be one of False, True, got 'yes'"),
        ({"after_activation": 1}, "after_activation must be one of False, True, got 1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("verb", [hotswap.plan, hotswap.convert])
def test_values_are_checked_whatever_the_targets(verb, values, message):
    with pytest.raises(hotswap.HotswapError, match=message):
        verb(ENLARGING, "resize_*", "input", **values)
    if values != {"kernel": "inv_1_1_fixed"}:
        with pytest.raises(hotswap.HotswapError, match=message):
            verb(VGG, **values)
    if verb is hotswap.convert and "conserve" in values:
        with pytest.raises(hotswap.HotswapError, match=message):
            verb(ENLARGING, "resize_*", "input", calibrate_on=torch.rand(1, 3, 16, 16), **values)


def test_a_kernel_beside_enlargements_is_the_convolutions():
    both = nn.Sequential(conv(3), conv(stride=2), conv(), *ENLARGING[1:])
    made = hotswap.plan(both, ["2", "resize_*"], {"2": "0", "resize_*": "input"}, kernel="inv_1_1_fixed")
    assert [swap.kernel for swap in made.swaps + made.resizes] == ["inv_1_1_fixed", "gaussian"]


def test_data_that_is_none_and_a_deviation_without_data():
    with pytest.raises(hotswap.HotswapError, match="batches must be a tensor, or several .* got int"):
        hotswap.convert(Plain(), "target", "guide", calibrate_on=5)
    with pytest.raises(hotswap.HotswapError, match="deviation is reached on data: give some as calibrate_on"):
        hotswap.convert(Plain(), "target", "guide", deviation=0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "features.77"}, "target 'features.77' is no module of this network"),
        ({"guide": ("nothing",)}, "guide 'nothing' is no module of this network"),
        ({"in_channels": 3}, "made for another network"),
        ({"target": "features.1"}, "is a ReLU"),
    ],
)
def test_a_plan_for_another_network_is_refused(change, message):
    import dataclasses

    net = VGG
    plan = hotswap.plan(net)
    wrong = dataclasses.replace(plan, swaps=(dataclasses.replace(plan.swaps[0], **change), *plan.swaps[1:]))
    before = snapshot(net)
    with pytest.raises(hotswap.HotswapError, match=message):
        hotswap.apply(net, wrong, inplace=True)
    assert snapshot(net) == before
