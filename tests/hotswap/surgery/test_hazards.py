"""One hand-written network for each thing that bites, against the swap spelt out with PacConv2d."""

import copy
from collections import OrderedDict

import networks
import pytest
import torch
import torch.nn.functional as F
from networks import conv
from swap_by_hand import SCALE, close, pac, plain_expected, swap
from torch import nn
from torch.nn.utils import parametrizations

import hotswap
from hotswap.targets.convolution import SwappedLayer


@pytest.fixture
def image():
    return torch.randn(2, 3, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"groups": 4},
        {"groups": 8, "k": 5},
        {"stride": 2},
        {"stride": (1, 2), "padding": (0, 2)},
        {"dilation": 2, "padding": 2},
        {"padding": "same", "dilation": (1, 2)},
        {"padding": "valid"},
        {"padding_mode": "reflect"},
        {"padding_mode": "replicate", "dilation": 2, "padding": 2},
        {"padding_mode": "circular"},
        {"c_out": 6},
    ],
    ids=str,
)
def test_every_convolution_option(options, image):
    net = networks.Plain(**options)
    close(swap(net)(image), plain_expected(net, image))


def test_asymmetric_window(image):
    net = networks.with_target(nn.Conv2d(8, 8, (3, 5), padding=(1, 2)))
    close(swap(net)(image), plain_expected(net, image))


def test_no_bias(image):
    net = networks.Plain(bias=False)
    converted = swap(net)
    assert converted.target.bias is None
    net.target.bias = nn.Parameter(torch.zeros(8))
    close(converted(image), plain_expected(net, image))


@pytest.mark.parametrize("resize", ["bilinear", "area", "nearest"])
def test_resize_goes_to_the_exact_input_size(resize):
    x = torch.randn(1, 3, 13, 11)
    net = networks.Plain()
    g = F.relu(net.guide(F.relu(net.stem(x))))
    pooled = net.pool(g)
    options = {"align_corners": False} if resize == "bilinear" else {}
    small = F.interpolate(g, pooled.shape[2:], mode=resize, **options)
    close(swap(net, resize=resize)(x), net.head(F.relu(pac(net.target, pooled, small))))


def test_guide_overwritten_later_is_copied(image):
    net = networks.InPlaceAfterGuide()
    g = F.relu(net.guide(F.relu(net.stem(image))))
    converted = swap(net)
    out = converted(image)
    close(out, net.head(F.relu(pac(net.target, torch.tanh(2 * g), g))))
    out.sum().backward()  # autograd must not find the guide overwritten
    assert converted.guide.weight.grad.abs().max() > 0


def test_residual_in_place(image):
    net = networks.InPlaceResidual()
    x = net.stem(image)
    out = F.relu(net.norm.eval()(net.guide(x)) + x)
    converted = swap(net)
    close(converted(image), F.relu(pac(net.target, out, out) + out))
    converted(image).sum().backward()


def test_guide_before_its_activation(image):
    net = networks.Plain()
    raw = net.guide(F.relu(net.stem(image)))
    x = net.pool(F.relu(raw))
    close(swap(net, after_activation=False)(image), net.head(F.relu(pac(net.target, x, raw))))


def test_each_call_of_a_shared_head_has_its_own_kernel(image):
    net = networks.SharedHead()
    g = F.relu(net.guide(net.stem(image)))
    large, small = swap(net, "head")(image)
    close(large, pac(net.head, g, g))
    close(small, pac(net.head, net.pool(g), g))


def test_calls_pair_up_along_the_data():
    net, x, y = networks.Siamese(), torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    a, b = F.relu(net.guide(x)), F.relu(net.guide(y))
    close(swap(net, example_inputs=(x, y))(x, y), pac(net.target, a, a) - pac(net.target, b, b))


def test_a_convolution_registered_twice_is_swapped_in_both_places(image):
    net = networks.TiedBranches()
    g = F.relu(net.guide(image))
    target = net.left.c
    close(swap(net, "left.c")(image), pac(target, g, g) + pac(target, g.flip(-1), g))
    assert list(swap(net, "right.c").state_dict()) == list(net.state_dict())


def test_both_modes_are_kept(image):
    net = networks.ModeDependent()
    converted = swap(net)
    g = F.relu(net.guide(image))
    target = pac(net.target, g, g)
    assert converted(image).keys() == {"out"}
    close(converted(image)["out"], target)
    converted.train()
    trained = converted(image)
    assert trained.keys() == {"out", "aux"}
    dropped = trained["out"] == 0
    assert 0.3 < dropped.float().mean() < 0.7
    close(trained["out"][~dropped], 2 * target[~dropped])


def test_mixed_modes_of_rewritten_modules_are_refused(image):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.guide, self.inner = conv(3, 3), networks.ModeDependent()

        def forward(self, x):
            return self.inner(F.relu(self.guide(x)))["out"]

    converted = swap(Outer(), "inner.target")
    converted(image)
    converted.inner.train()
    with pytest.raises(hotswap.HotswapError, match="evaluation mode and inner is not"):
        converted(image)


def test_arguments_are_kept_at_their_defaults(image):
    net = networks.Optional()
    converted = swap(net)
    g = F.relu(net.guide(image))
    expected = pac(net.target, g, g)
    for output in (converted(image), converted(image, None), converted(x=image, scale=1.0)):
        close(output, expected)
    with pytest.raises(hotswap.HotswapError, match="mask=None alone"):
        converted(image, torch.ones(()))
    with pytest.raises(hotswap.HotswapError, match=r"scale=1.0 alone, got 2.0"):
        converted(image, scale=2.0)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (networks.Optional, {}),
        (networks.Constants, {}),
        (networks.InPlaceResidual, {}),
        (networks.SharedHead, {"targets": "head"}),
        (networks.Plain, {"learn_scale": True}),
    ],
)
def test_compile_and_export(make, options, image):
    converted = swap(make(), **options)
    expected = converted(image)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(converted, fullgraph=True, backend="aot_eager")(image), expected)
    torch.testing.assert_close(torch.export.export(converted, (image,)).module()(image), expected)


def test_the_smallest_method_is_rewritten_and_the_others_still_work(image):
    net = networks.Methods()
    converted = swap(net)
    g = F.relu(net.guide(image))
    expected = pac(net.target, g, g)
    close(converted.forward_features(image), expected)
    close(converted(image), net.head(expected.mean((2, 3))))
    assert converted.predict(image).shape == (2,)
    assert converted.label == "mine"


def test_data_dependent_code_outside_the_rewritten_part_does_not_matter():
    net = networks.Methods()  # its forward branches on data, its forward_features does not
    plan = hotswap.plan(net, "target", "guide", example_inputs=torch.rand(1, 3, 8, 8))
    assert "rewrites Methods.forward_features" in plan.notes


@pytest.mark.parametrize(("targets", "guide"), [("features.4", "features.0"), ("blocks.1.0", "blocks.0.0")])
def test_containers_that_are_never_called_are_looked_through(targets, guide, image):
    net = networks.Containers()
    converted = swap(net, targets, guide)
    assert not torch.allclose(converted(image), net(image))
    assert torch.equal(hotswap.revert(converted)(image), net(image))


def test_tensors_made_in_forward(image):
    net = networks.Constants()
    attributes = set(net.__dict__)
    converted = swap(net)
    g = F.relu(net.guide(image - torch.tensor([0.1, 0.2, 0.3])[:, None, None]))
    close(converted(image), pac(net.target, g, g))
    assert set(net.__dict__) == attributes
    assert set(hotswap.revert(converted).__dict__) == attributes


def test_a_subclass_that_computes_what_conv2d_does_stays_one(image):
    net = networks.with_target(networks.NamedConv2d(8, 8, 3, padding=1))
    converted = swap(net)
    assert isinstance(converted.target, networks.NamedConv2d)
    assert converted.target.fan_in() == 72
    close(converted(image), plain_expected(net, image))
    assert type(hotswap.revert(converted).target) is networks.NamedConv2d


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrised_weights(wrap, image):
    net = networks.Plain()
    wrap(net.target)
    net.eval()
    converted = swap(net)
    close(converted(image), plain_expected_with_weight(net, image))
    assert list(converted.state_dict()) == list(net.state_dict())
    converted(image).sum().backward()
    assert all(p.grad is not None for p in converted.target.parametrizations.parameters())


@pytest.mark.parametrize("target", [None, networks.NamedConv2d(8, 8, 3, padding=1)])
def test_a_parametrisation_put_on_a_swapped_target_outlives_the_swap(target, image):
    net = networks.Plain() if target is None else networks.with_target(target)
    converted = swap(net)
    parametrizations.weight_norm(converted.target)
    hotswap.verify(converted, image)  # which makes a plain copy
    plain = hotswap.revert(converted)
    assert not isinstance(plain.target, SwappedLayer)
    assert isinstance(plain.target, type(net.target))
    close(plain(image), net(image))
    assert len(list(plain.target.parametrizations.weight.parameters())) == 2
    torch.nn.utils.parametrize.remove_parametrizations(plain.target, "weight")
    assert type(plain.target) is type(net.target)


def plain_expected_with_weight(net, x):
    plain = networks.Plain()
    plain.load_state_dict(
        {k: v for k, v in net.state_dict().items() if "parametrizations" not in k}
        | {"target.weight": net.target.weight.detach()}
    )
    return plain_expected(plain, x)


def test_hooks_on_a_target_still_run(image):
    net = networks.Plain()
    seen = []
    net.target.register_forward_hook(lambda m, a, out: seen.append(out.shape))
    swap(net)(image)
    assert seen[-1] == (2, 8, 6, 5)


def test_a_network_wrapped_after_conversion_is_still_known(image):
    converted = swap(networks.Plain())
    wrapper = nn.Sequential(nn.Identity(), converted)
    (only,) = hotswap.status(wrapper).plan.swaps
    assert (only.target, only.guide) == ("1.target", ("1.guide",))
    expected = wrapper(image)
    assert torch.equal(copy.deepcopy(wrapper)(image), expected)
    assert hotswap.status(hotswap.revert(wrapper)).plan is None


def test_a_target_called_past_the_rewritten_forward_says_so(image):
    converted = swap(networks.Plain())
    with pytest.raises(hotswap.HotswapError, match="called without its guide"):
        converted.target(torch.randn(1, 8, 4, 4))


def test_plan_copes_with_inputs_the_network_does_not_run_on(image):
    net = networks.Siamese()  # takes two images, so the default single one fails
    plan = hotswap.plan(net, "target", "guide")
    assert any("not checked by a run" in note for note in plan.notes)
    a, b = F.relu(net.guide(image)), F.relu(net.guide(-image))
    converted = hotswap.convert(net, "target", "guide", guide_scale=SCALE)
    close(converted(image, -image), pac(net.target, a, a) - pac(net.target, b, b))


def test_an_ordered_dictionary_stays_one(image):
    class Named(networks.Plain):
        def forward(self, x):
            result = OrderedDict()
            result["out"] = super().forward(x)
            return OrderedDict(inner=result, more=[result["out"]])

    net = Named().eval()
    found = swap(net, method="fx")(image)
    assert type(found) is type(found["inner"]) is OrderedDict
    close(found["inner"]["out"], plain_expected(net, image))
    assert found["more"][0] is found["inner"]["out"]


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_a_guide_whose_activation_comes_after_the_target_is_as_its_module_gives_it(method, image):
    class Late(networks.Plain):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()
            self.later = conv()

        def forward(self, x):
            x = F.relu(self.stem(x))
            g = self.guide(x)
            y = self.target(x)
            g = self.act(g)
            return self.head(y + self.later(g))

    net = Late().eval()
    converted = swap(net, ["target", "later"], method=method)
    x = F.relu(net.stem(image))
    g = net.guide(x)
    expected = net.head(pac(net.target, x, g) + pac(net.later, F.relu(g), F.relu(g)))
    close(converted(image), expected)
