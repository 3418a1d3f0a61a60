"""A sample of the coverage sweep (benchmarks/coverage): small networks that together need every mechanism."""

import os

import forks
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

from benchmarks.coverage import __main__ as command
from benchmarks.coverage import convolutions, enlargements, sweep, tables
from benchmarks.coverage.networks import Network, all_networks, image
from benchmarks.coverage.plain import NotApplicable, PlainError
from benchmarks.coverage.promises import BrokenPromise
from hotswap.surgery.self_check import SelfCheck
from hotswap.targets.convolution import SwappedConv2d
from hotswap.targets.enlargement import GuidedResize

SAMPLE = {
    "timm:resnetv2_18": "fx",  # activations before the convolutions
    "timm:convnext_atto": "fx",  # depthwise 7x7, layer norm
    "timm:hardcorenas_a": "fx",  # squeeze and excitation
    "timm:efficientformerv2_s0": "fx",  # caches what it computed
    "timm:tf_mobilenetv3_small_minimal_100": "fx",  # Conv2dSame among its convolutions
    "timm:test_nfnet": "fx",  # weights standardised in their own forward
    "timm:test_resnet": "fx",
    "timm:test_mambaout": "fx",  # channels last, gated
    "timm:selecsls42": "hooks",  # appends to lists
    "torchvision:raft_small": "fx",  # two images, stacked for one encoder; a block called again and again
    "torchvision:quantized_mobilenet_v2": "fx",
    "torchvision:lraspp_mobilenet_v3_large": "fx",  # an ordered dictionary of activations
    "smp:unet/resnet18": "fx",
    "smp:deeplabv3plus/resnet18": "fx",  # looks whether the size of its input suits it
    "smp:segformer/mit_b0": "hooks" if torch.__version__.startswith("2.8.") else "fx",  # torch.empty, of traced sizes
    "transformers:ResNetModel": "hooks",  # output classes, keyword arguments
    "transformers:SegformerForSemanticSegmentation": "hooks",  # tokens between its convolutions
    "transformers:MobileViTModel": "hooks",
}


@pytest.fixture(scope="module")
def networks():
    return {network.id: network for network in all_networks()}


OTHERS_ARE_LIKE = {  # these, which are run with `-m slow`
    "timm:resnetv2_18",
    "timm:hardcorenas_a",
    "timm:test_resnet",
    "torchvision:lraspp_mobilenet_v3_large",
    "smp:unet/resnet18",
    "transformers:ResNetModel",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in OTHERS_ARE_LIKE)) for name in SAMPLE]
)
def test_every_promise_holds_for(name, networks):
    report = convolutions.Report()
    convolutions.check(networks[name], report)
    assert report.method == SAMPLE[name]


ENLARGED = {  # method, and footprints
    "smp:deeplabv3plus/resnet18": ("fx", (2,)),
    "smp:unet/resnet18": ("fx", (4,)),  # nearest ones alone
    "transformers:SegformerForSemanticSegmentation": ("hooks", (2,)),
}


@pytest.mark.parametrize("name", ENLARGED)
def test_every_promise_holds_for_enlargements_of(name, networks):
    report = enlargements.Report()
    enlargements.check(networks[name], report)
    assert (report.method, report.footprints) == ENLARGED[name]
    assert report.difference_strong > 1e-2


class Small(nn.Module):
    def __init__(self, convolutions=3):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(convolutions))

    def forward(self, x):
        for conv in self.convs:
            x = torch.tanh(conv(x))
        return {"out": [x]}


def network(build=Small):
    return Network("timm", "small", "small", build, lambda model, size: (image(3, size),), (8,))


def test_a_network_with_too_few_stages_is_guided_by_its_first_convolution():
    report = convolutions.Report()
    convolutions.check(network(), report)
    assert (report.choice, report.targets, report.guide) == ("first-last", ("convs.2",), ("convs.0",))
    assert report.difference_strong > 1e-4


def test_too_few_convolutions_do_not_apply_and_a_broken_network_is_told_apart():
    with pytest.raises(NotApplicable, match="1 spatial"):
        convolutions.check(network(lambda: Small(1)), convolutions.Report())

    def broken():
        made = Small()
        made.convs[1] = nn.Conv2d(5, 3, 3)
        return made

    with pytest.raises(PlainError, match="at 8: RuntimeError"):
        convolutions.check(network(broken), convolutions.Report())


@pytest.fixture
def unchecked(monkeypatch):
    """Without the check of `convert` itself, which would be first."""
    monkeypatch.setattr(SelfCheck, "compare", lambda self, swapped: None)


def _biased(self, distance):
    return torch.exp(-0.5 * self.guide_scale**2 * distance) + 1e-2


def _deaf(self, distance):
    return torch.exp(-0.5 * self.guide_scale**2 * distance.detach())


@pytest.mark.parametrize(
    ("kernel", "message"),
    [(_biased, "at guide_scale=0 outputs differ"), (_deaf, "no gradient reaches the guide")],
)
def test_a_swap_that_does_something_else_is_found(kernel, message, monkeypatch, unchecked):
    monkeypatch.setattr(SwappedConv2d, "adapting_kernel", kernel)

    class Detached(Small):
        def forward(self, x):
            self.convs[0](x)
            return self.convs[2](x)  # so that only the swap leads to the guide

    with pytest.raises(BrokenPromise, match=message):
        convolutions.check(network(Detached), convolutions.Report())


class Enlarging(nn.Module):
    """Both kinds of enlargement, of an image in a list: what guides is a convolution's output."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.last = nn.Conv2d(4, 4, 3, stride=2, padding=1)

    def forward(self, images):
        fine = torch.tanh(self.fine(images[0]))
        coarse = torch.tanh(self.coarse(fine))
        x = F.interpolate(self.last(coarse), scale_factor=2) * coarse
        return F.interpolate(x, scale_factor=2, mode="bilinear") * fine


def enlarging(build=Enlarging):
    return Network("timm", "small", "small", build, lambda model, size: ([image(3, size)],), (8,))


def test_enlargements_of_both_kinds_are_swapped_with_both_footprints():
    report = enlargements.Report()
    enlargements.check(enlarging(), report)
    assert (report.enlargements, report.footprints) == (2, (2, 4))
    assert (report.targets, report.guide) == (("resize_1", "resize_2"), ("fine",))
    assert "guide 'input' must give" in report.notes[0]
    with pytest.raises(NotApplicable, match="enlarges nothing"):
        enlargements.check(network(), enlargements.Report())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: 1.001 * x, "at guide_scale=0 outputs differ"),
        (lambda x: x.detach(), "at guide_scale=0 gradients differ"),
    ],
)
def test_a_guided_enlargement_that_does_something_else_is_found(wrong, message, monkeypatch, unchecked):
    right = GuidedResize.forward
    monkeypatch.setattr(GuidedResize, "forward", lambda *args, **kwargs: wrong(right(*args, **kwargs)))
    with pytest.raises(BrokenPromise, match=message):
        enlargements.check(enlarging(), enlargements.Report())


def test_a_network_that_hangs_or_dies_costs_one_row(tmp_path):
    def hangs():
        while True:
            pass

    def dies():
        os._exit(3)

    rows = list(
        sweep.sweep(sweep.KINDS["convolutions"], [network(hangs), network(dies)], jobs=2, seconds=1, gigabytes=20)
    )
    assert sorted(row.outcome for row in rows) == ["failed", "timeout"]
    path = tmp_path / "rows.csv"
    for row in rows:
        sweep.append(row, path)
    (kept,) = sweep.read(path).values()  # the newest, as both have one name
    assert kept["outcome"] == rows[-1].outcome
    assert kept["reason"] in tables.page(sweep.read(path), sweep.read(path))


def cover(arguments):
    command.main(arguments)


def test_the_command_keeps_a_row_and_skips_what_has_one(tmp_path):
    path = tmp_path / "rows.csv"
    arguments = ["--only", "timm:test_resnet", "--output", str(path)]
    (tmp_path / "work").mkdir()
    # A process of its own: networks are forked from it, which autograd's threads would not survive.
    status, _, errors = forks.run(cover, arguments, folder=tmp_path / "work")
    assert status == 0, errors
    assert CliRunner().invoke(command.main, arguments).exit_code == 0
    (row,) = path.read_text().splitlines()[1:]
    assert ",ok," in row
