"""Joint upsampling: sizes, published names, parameter counts, and that channels do not see each other."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pac_ops import joint_bilateral_upsample
from recipes.networks.djf import DJF
from recipes.networks.pac_upsampling import FACTORS, PacUpsampling
from recipes.networks.training_free import GuidedFilter, Interpolation, JointBilateral


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


TRAINED = [
    *((f"pac{'_lite' * lite}_x{factor}", lambda f=factor, lite=lite: PacUpsampling(f, lite), factor)
      for factor in FACTORS for lite in (False, True)),
    ("djf", DJF, 4),
    ("djf_bilinear", lambda: DJF("bilinear"), 4),
]  # fmt: skip
FREE = [
    ("bilinear", lambda: Interpolation("bilinear"), 4),
    ("bicubic", lambda: Interpolation("bicubic"), 4),
    ("nearest", lambda: Interpolation("nearest"), 4),
    ("joint_bilateral", JointBilateral, 4),
    ("guided_filter", lambda: GuidedFilter(radius=2), 4),
]
ALL = pytest.mark.parametrize(("make", "factor"), [x[1:] for x in TRAINED + FREE], ids=[x[0] for x in TRAINED + FREE])
TRAINABLE = pytest.mark.parametrize(("make", "factor"), [x[1:] for x in TRAINED], ids=[x[0] for x in TRAINED])


def data(factor: int, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, channels, 4, 3), torch.rand(2, 3, 4 * factor, 3 * factor)


@ALL
def test_the_map_gets_the_guides_size(make, factor):
    low, guide = data(factor)
    with torch.no_grad():
        assert make()(low, guide).shape == (2, 2, *guide.shape[2:])


@ALL
def test_channels_are_enlarged_one_by_one_with_the_same_weights(make, factor):
    network, (low, guide) = make(), data(factor)
    with torch.no_grad():
        together = network(low, guide)
        alone = torch.cat([network(channel, guide) for channel in low.split(1, dim=1)], dim=1)
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(network(low.flip(1), guide), together.flip(1), rtol=1e-5, atol=1e-6)


@TRAINABLE
def test_every_parameter_learns(make, factor):
    network, (low, guide) = make(), data(factor)
    network(low, guide).square().mean().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not still


@TRAINABLE
def test_the_guide_steers(make, factor):
    network, (low, guide) = make(), data(factor)
    with torch.no_grad():
        assert not torch.allclose(network(low, guide), network(low, guide.flip(3)), atol=1e-6)


@pytest.mark.parametrize("factor", FACTORS)
def test_names_are_the_published_ones(factor):
    steps = FACTORS.index(factor) + 2
    layers = [f"branch_{b}.conv{i}" for b in "tg" for i in (1, 2, 3)] + ["branch_f.conv1", "branch_f.conv2"]
    layers += [f"up_convts.{step}" for step in range(steps)]
    expected = {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
    for lite in (False, True):
        assert set(PacUpsampling(factor, lite).state_dict()) == expected


def test_names_of_djf_are_the_published_ones():
    layers = [f"{branch}.{i}" for branch in ("branch_t", "branch_g", "joint") for i in (0, 2, 4)]
    assert set(DJF().state_dict()) == {f"{name}.{part}" for name in layers for part in ("weight", "bias")}


def test_layers_are_those_of_the_paper():
    network = PacUpsampling(8)
    assert [network.branch_t.conv1.in_channels, network.branch_g.conv1.in_channels] == [1, 3]
    assert network.branch_g.conv3.out_channels == 3 * 16
    for layer in network.up_convts:
        assert (layer.kernel_size, layer.padding, layer.output_padding) == ((5, 5), (2, 2), (1, 1))
    sizes = [
        (x.in_channels, x.out_channels, x.kernel_size, x.padding) for x in DJF().branch_g if isinstance(x, nn.Conv2d)
    ]
    assert sizes == [(3, 96, (9, 9), (2, 2)), (96, 48, (1, 1), (2, 2)), (48, 1, (5, 5), (2, 2))]


# Counted from the widths in the paper's supplement, by hand.
@pytest.mark.parametrize(("factor", "count"), [(4, 55_509), (8, 56_273), (16, 55_777)])
def test_lite_has_about_as_many_parameters_as_djf(factor, count):
    assert parameters(DJF()) == 56_323
    assert parameters(PacUpsampling(factor, lite=True)) == count
    assert parameters(PacUpsampling(factor)) > 3 * count


@pytest.mark.parametrize(("make", "factor"), [(lambda: PacUpsampling(4, lite=True), 4), (DJF, 4)], ids=["pac", "djf"])
def test_learns_to_enlarge(make, factor):
    network, (low, guide) = make(), data(factor, channels=1)
    target = F.interpolate(low, scale_factor=factor, mode="bilinear")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(network(low, guide), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_joint_bilateral_is_the_operators():
    low, guide = data(4)
    torch.testing.assert_close(
        JointBilateral(0.2, 0.7, 3)(low, guide), joint_bilateral_upsample(low, guide, 0.2, 0.7, 3)
    )


def test_guided_filter_follows_an_edge_that_interpolation_blurs():
    target = torch.zeros(1, 1, 32, 32)
    target[..., 14:] = 1
    low = target[..., 2::4, 2::4]
    guide = target.expand(-1, 3, -1, -1)
    enlarged = [network(low, guide) for network in (GuidedFilter(4, 1e-4), Interpolation("bilinear"))]
    filtered, interpolated = [float((x[..., 14] - x[..., 13]).mean()) for x in enlarged]
    assert filtered > 2 * interpolated


@pytest.mark.parametrize("make", [PacUpsampling, DJF, Interpolation, JointBilateral, GuidedFilter])
@pytest.mark.parametrize(
    ("low", "guide", "message"),
    [
        ((1, 4, 4), (1, 3, 16, 16), r"low must be \[B, channels, height, width\], got \[1, 4, 4\]"),
        ((2, 1, 4, 4), (1, 3, 16, 16), "guide must have the batch of low, 2, got 1"),
        ((1, 1, 4, 4), (1, 3, 3, 16), r"guide must be at least as large as low, \[4, 4\], got \[3, 16\]"),
    ],
)
def test_maps_that_do_not_belong_together_are_refused(make, low, guide, message):
    with pytest.raises(ValueError, match=message):
        make()(torch.rand(low), torch.rand(guide))


def test_another_factor_is_refused():
    with pytest.raises(ValueError, match=r"guide must be 4 times as large as low, \[16, 16\], got \[32, 16\]"):
        PacUpsampling(4)(torch.rand(1, 1, 4, 4), torch.rand(1, 3, 32, 16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PacUpsampling(3), "factor must be one of 4, 8, 16, got 3"),
        (lambda: Interpolation("cubic"), "mode must be one of nearest, bilinear, bicubic, got 'cubic'"),
        (lambda: DJF("nearest"), "enlarge must be one of bicubic, bilinear, got 'nearest'"),
        (lambda: GuidedFilter(radius=0), "radius must be at least 1 pixel, got 0"),
        (lambda: GuidedFilter(eps=0), "eps must be positive, got 0"),
    ],
)
def test_options_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
