"""Learned projections of guides: they start from principal directions, and learn."""

import copy
import json

import networks
import pytest
import torch
import torch.nn.functional as F
from kinds_of_targets import METHODS
from networks import conv
from saving import same
from swap_by_hand import close

import hotswap
from hotswap.errors import HotswapError
from hotswap.rates import parameters_of
from pac_ops import pacconv2d, packernel2d

IMAGE = torch.rand(2, 3, 12, 10, generator=torch.Generator().manual_seed(3))


class Three(torch.nn.Module):
    """Targets of one window, guide and size, which share distances."""

    def __init__(self):
        super().__init__()
        self.guide, self.a, self.b, self.c = conv(3), conv(), conv(), conv()

    def forward(self, x):
        return self.c(self.b(F.relu(self.a(F.relu(self.guide(x))))))


def projected(net, targets="target", guide="guide", **options):
    options = {"calibrate_on": [IMAGE], "projection": 2} | options
    return hotswap.convert(net, targets, guide, **options)


def guide_of(net, x=IMAGE):
    """The guide of `networks.Plain`, at the target's size, and the target's input."""
    g = F.relu(net.guide(F.relu(net.stem(x))))
    small = net.pool(g)
    return F.interpolate(g, small.shape[2:], mode="bilinear"), small


@pytest.fixture
def net():
    torch.manual_seed(0)
    return networks.Plain().eval()


@pytest.mark.parametrize("method", METHODS)
def test_all_directions_together_are_the_guide_itself(net, method):
    """A rotation keeps distances, and so do the scale that is calibrated on them and the outputs."""
    rotated, plain = (projected(net, projection=n, method=method) for n in (8, 0))
    torch.testing.assert_close(rotated.target.guide_scale, plain.target.guide_scale, rtol=1e-4, atol=0)
    close(rotated(IMAGE), plain(IMAGE))
    rows = rotated.target.guide_projection
    torch.testing.assert_close(rows @ rows.T, torch.eye(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [1, 3])
def test_it_starts_from_principal_directions(net, window):
    swapped, again = (projected(net, projection=(2, window)) for _ in range(2))
    rows = swapped.target.guide_projection
    assert torch.equal(rows, again.target.guide_projection)
    pixels = guide_of(net)[0].movedim(1, -1).flatten(0, 2).double()
    *_, directions = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    middle = rows.detach().unflatten(1, (8, window, window))[:, :, window // 2, window // 2].double()
    assert (middle * directions[:2]).sum(1).abs().min() > 1 - 1e-5
    assert (middle.gather(1, middle.abs().argmax(1, keepdim=True)) > 0).all()
    assert torch.equal(rows.count_nonzero(), middle.count_nonzero())
    assert abs(hotswap.verify(swapped, [IMAGE]).targets[0].deviation - 0.3) < 0.01
    plan = str(hotswap.status(swapped))
    assert f"{window}x{window}, 8 -> 2" in plan
    assert f"learned beside the network's weights: {16 * window**2} parameters" in plan


@pytest.mark.parametrize("window", [1, 3])
def test_outputs_and_gradients_by_hand_in_float64(net, window):
    swapped = projected(net, projection=(2, window), conserve=None, learn_scale=True).double()
    rows, scale = swapped.target.guide_projection, swapped.target.guide_scale
    with torch.no_grad():
        rows += 0.1 * torch.randn_like(rows)
    twin, weight = copy.deepcopy(net).double(), rows.detach().clone().requires_grad_()

    def by_hand(x):
        g, small = guide_of(twin, x)
        f = F.conv2d(g, weight.view(2, 8, window, window), padding=window // 2)
        kernel = packernel2d(scale * f, padding=1)[0]
        return twin.head(F.relu(pacconv2d(small, kernel, twin.target.weight, twin.target.bias, padding=1)))

    out, expected = swapped(IMAGE.double()), by_hand(IMAGE.double())
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(rows.grad, weight.grad)
    assert weight.grad.abs().max() > 0
    for name, p in twin.named_parameters():
        torch.testing.assert_close(swapped.get_parameter(name).grad, p.grad)


def test_with_a_gate_the_start_is_exact_and_the_projection_learns_next(net):
    swapped = projected(net, gate=True)
    assert torch.equal(swapped(IMAGE), net(IMAGE))
    groups = hotswap.parameter_groups(swapped, 0.1, {"gates": 3, "projections": 10, "swapped": 0}, IMAGE)
    assert sorted(group["lr"] for group in groups) == pytest.approx([0, 0.1, 0.3, 1.0])
    assert sum(len(group["params"]) for group in groups) == len(list(swapped.parameters()))
    assert parameters_of(swapped, "projections", IMAGE) == ["target.guide_projection"]
    optimiser = torch.optim.SGD(groups)
    moved = []
    for _ in range(2):
        before = swapped.target.guide_projection.detach().clone()
        optimiser.zero_grad()
        swapped(IMAGE).square().sum().backward()
        optimiser.step()
        moved.append(bool((swapped.target.guide_projection != before).any()))
    assert moved == [False, True]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_saved_loaded_copied_applied_reverted(net, suffix, tmp_path):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        model = projected(net, projection=(2, 3), gate=True, conserve="window").to(dtype)
        torch.nn.init.constant_(model.target.guide_gate, 0.5)
        assert model.target.guide_projection.dtype in (torch.float32, dtype)
        hotswap.save(model, tmp_path / f"m.{suffix}")
        loaded, image = hotswap.load(tmp_path / f"m.{suffix}", net), IMAGE.to(dtype)
        assert same(loaded.state_dict(), model.state_dict())
        assert hotswap.status(loaded) == hotswap.status(model)
        for again in (loaded, copy.deepcopy(model)):
            assert torch.equal(again(image), model(image))
        assert hotswap.verify(model, [image]).same_state
        assert list(hotswap.revert(model).state_dict()) == list(net.state_dict())
    plan = hotswap.Plan.from_dict(json.loads(json.dumps(hotswap.status(model).plan.to_dict())))
    assert plan == hotswap.status(model).plan
    assert same(hotswap.apply(net, plan).double().state_dict(), model.state_dict())


def test_autocast_compiled_and_exported(net):
    swapped = projected(net)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = swapped.target.distance(IMAGE, [torch.rand(2, 8, 12, 10)])
        assert distance.dtype == torch.float32
        assert swapped(IMAGE).dtype == torch.bfloat16
    torch._dynamo.reset()
    close(torch.compile(swapped, fullgraph=True, backend="aot_eager")(IMAGE), swapped(IMAGE))
    close(torch.export.export(swapped, (IMAGE,)).module()(IMAGE), swapped(IMAGE))


@pytest.mark.parametrize("method", METHODS)
def test_several_targets_and_guides(method):
    """Each target learns a projection of its own, also where they would share distances; guides count as one."""
    torch.manual_seed(0)
    net = Three().eval()
    swapped = projected(net, ["a", "b"], ["guide", "input"], projection=3, method=method)
    assert swapped.a.guide_projection.shape == (3, 11)
    assert swapped.a.guide_projection is not swapped.b.guide_projection
    before = swapped(IMAGE)
    before.sum().backward()
    assert all(layer.guide_projection.grad.abs().max() > 0 for layer in (swapped.a, swapped.b))
    more = hotswap.convert(swapped, "c", "guide", guide_scale=1e-6, method=method)
    assert torch.equal(more.a.guide_projection, swapped.a.guide_projection)
    assert more.c.guide_projection is None
    close(more(IMAGE), before)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"calibrate_on": None}, "projection starts from what is measured on data"),
        ({"projection": 9}, "projection must be at most the 8 channels of the guide of target 'target', got 9"),
        ({"projection": (2, 5)}, r"with a window of 1 or 3, got \(2, 5\)"),
        ({"projection": True}, "projection must be a number of channels"),
        ({"projection": "8"}, "projection must be a number of channels"),
    ],
)
def test_refusals(net, options, reason):
    with pytest.raises(HotswapError, match=reason):
        projected(net, **options)


def test_a_plan_whose_projection_does_not_fit_is_refused(net):
    plan = hotswap.status(projected(net)).plan.to_dict()
    for rows, reason in (
        ([[1.0] * 8, [1.0] * 7], "rows must hold one number for each channel"),
        ([["x"]], "must be numbers"),
        ([1.0], "must be lists"),
        ([[float("nan")] * 8], "must be finite"),
    ):
        with pytest.raises(HotswapError, match=reason):
            hotswap.Plan.from_dict(plan | {"swaps": [plan["swaps"][0] | {"projection": rows}]})
    other = hotswap.Plan.from_dict(plan | {"swaps": [plan["swaps"][0] | {"projection": [[1.0] * 7]}]})
    with pytest.raises(HotswapError, match="projects a guide of 7 channels, got one of 8"):
        hotswap.apply(net, other)
