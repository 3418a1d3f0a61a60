"""Steps back from a halved map, in networks: which enlargements have them, what they compute, and files."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hotswap
from hotswap.targets.plan import Plan
from pac_ops import pacresize2d, srgb_to_lab

BACK = {2: ((6, 4, 2), 2), 4: ((6, 4, 2), 1)}


class Net(nn.Module):
    """Scores at a fraction of the image, enlarged to its size."""

    def __init__(self, factor=2, classes=5, rows=1, mode="bilinear", mixed=False):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=factor**rows, padding=1)
        self.score = nn.Conv2d(8, classes, 1)
        self.last = nn.Conv2d(classes, classes, 3, padding=1) if mixed else nn.Identity()
        self.factor, self.rows, self.mode = factor, rows, mode

    def forward(self, image):
        x = self.score(self.body(image).relu())
        if self.rows == 2:
            x = F.interpolate(x, scale_factor=self.factor, mode=self.mode)
        x = F.interpolate(x, scale_factor=self.factor, mode=self.mode)
        return self.last(x)


def network(**options):
    torch.manual_seed(0)
    return Net(**options).eval()


def images(height=32, width=48):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height))


def converted(net, **options):
    targets = options.pop("targets", "resize")
    return hotswap.convert(copy.deepcopy(net), targets, "input", calibrate_on=[images()], **options)


@pytest.mark.parametrize("method", ["fx", "hooks"])
@pytest.mark.parametrize("factor", BACK)
def test_scores_by_4_and_2_go_in_steps_back_at_every_size(factor, method):
    net = network(factor=factor)
    swapped = converted(net, method=method)
    (resize,) = hotswap.status(swapped).plan.resizes
    assert (resize.footprint, resize.halvings) == BACK[factor]
    assert f"({resize.halvings} halved)" in str(hotswap.status(swapped))
    for size in ((32, 48), (36, 20), (8, 64), (44, 4)):
        image = images(*size)
        coarse = net.score(net.body(image).relu())
        expected = pacresize2d(
            coarse,
            srgb_to_lab(image),
            scale_factor=factor,
            scale=resize.guide_scale,
            footprint=resize.footprint,
            halvings=resize.halvings,
            residual=True,
        )
        torch.testing.assert_close(swapped(image), expected)
        assert min(size) < 8 or (expected - net(image)).abs().max() > 1e-3
    again = hotswap.revert(swapped)
    assert torch.equal(again(images()), net(images()))
    torch.testing.assert_close(converted(net, guide_scale=0.0, method=method)(images()), net(images()))


@pytest.mark.parametrize(
    ("net", "options", "steps"),
    [
        ({"classes": 3}, {}, [(2, 0)]),
        ({"factor": 4, "classes": 1}, {}, [((4, 2), 0)]),
        ({"mixed": True}, {"targets": "resize_*"}, [(2, 0)]),
        ({"rows": 2}, {}, [((6, 4), 1), (2, 0)]),
        ({"factor": 8}, {}, [((6, 4, 2), 0)]),
        ({}, {"footprint": 2}, [(2, 0)]),
        ({}, {"footprint": (6, 4)}, [((6, 4), 1)]),
        ({"mode": "nearest"}, {"targets": "resize_*", "footprint": 4}, [(4, 0)]),
    ],
    ids=str,
)
def test_which_enlargements_are_halved(net, options, steps):
    resizes = hotswap.status(converted(network(**net), **options)).plan.resizes
    assert [(resize.footprint, resize.halvings) for resize in resizes] == steps


def test_halvings_are_kept_by_files_and_trained_through(tmp_path):
    net = network()
    swapped = converted(net, learn_scale=True)
    hotswap.save(swapped, tmp_path / "a.safetensors")
    loaded = hotswap.load(tmp_path / "a.safetensors", network())
    assert hotswap.status(loaded).plan == hotswap.status(swapped).plan
    assert torch.equal(loaded(images()), swapped(images()))
    loaded.train()(images()).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loaded.parameters())
    assert loaded.get_parameter("_hotswap_resize_0.guide_log_scale").grad.abs() > 0
    assert torch.equal(copy.deepcopy(loaded).eval()(images()), loaded.eval()(images()))


def test_plans_without_halvings_have_none_and_wrong_ones_are_refused():
    plan = hotswap.status(converted(network())).plan
    data = json.loads(json.dumps(plan.to_dict()))
    assert Plan.from_dict(data) == plan
    for value, message in ((3, "halvings must be fewer than the 3 steps, got 3"), (-1, "got -1"), (True, "int")):
        data["resizes"][0]["halvings"] = value
        with pytest.raises(hotswap.HotswapError, match=message):
            Plan.from_dict(data)
    del data["resizes"][0]["halvings"]
    assert Plan.from_dict(data).resizes[0].halvings == 0
