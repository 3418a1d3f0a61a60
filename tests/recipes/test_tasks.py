"""Losses and metrics against what they are by definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hotswap.errors import HotswapError
from hotswap.measure.edges import near_edges
from recipes import config
from recipes.datasets import collate
from recipes.tasks import predict, task

SEGMENTATION = task(config.Segmentation(name="segmentation"))


def random(*size, seed=0):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def labelled(size=12, classes=3):
    labels = (random(2, size, size) * classes).long()
    labels[0, 3:9, 3:9] = 1
    labels[1, 0] = 255
    return labels


@pytest.mark.parametrize("distance", [1, 2, 3, 5])
def test_pixels_near_an_edge_are_those_with_another_label_in_reach(distance):
    labels = torch.zeros(1, 17, 15, dtype=torch.int64)
    labels[0, 7:10, 4:] = 1
    found = near_edges(labels, distance)[0]
    for y in range(17):
        for x in range(15):
            # An edge lies beside the pixel itself, or beside one that is less than `distance` away.
            beside = False
            for v in range(max(0, y - distance + 1), min(17, y + distance)):
                for u in range(max(0, x - distance + 1), min(15, x + distance)):
                    around = [(v + dy, u + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))]
                    beside |= any(
                        0 <= b < 17 and 0 <= a < 15 and labels[0, b, a] != labels[0, v, u] for b, a in around
                    )
            assert found[y, x] == beside


def test_segmentation_is_the_cross_entropy_of_what_counts():
    logits, labels = random(2, 3, 12, 12), labelled()
    loss = SEGMENTATION.total(logits, labels) / SEGMENTATION.count(labels)
    assert SEGMENTATION.count(labels) == 2 * 144 - 12
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, ignore_index=255))


def iou(found, labels, counted, classes=3):
    scores = []
    for c in range(classes):
        a, b = (found == c) & counted, (labels == c) & counted
        scores.append((a & b).sum() / (a | b).sum())
    return (sum(scores) / classes).item()


def test_intersection_over_union_is_of_all_pixels_together_everywhere_and_near_edges():
    labels = F.interpolate(labelled()[:, None].float(), scale_factor=4)[:, 0].long()
    logits = F.one_hot(labels.roll(1, 2) % 3, 3).permute(0, 3, 1, 2) + 0.9 * random(2, 3, 48, 48)
    measure = SEGMENTATION.measure()
    for image in range(2):
        measure.update(logits[image : image + 1], labels[image : image + 1])
    found, counted = logits.argmax(1), labels != 255
    wanted = {"miou": iou(found, labels, counted)}
    for distance in (3, 5):
        wanted[f"boundary_iou_{distance}"] = iou(found, labels, counted & near_edges(labels, distance))
    assert measure.compute() == pytest.approx(wanted, abs=1e-6)


def test_one_channel_is_a_binary_logit():
    """As two classes of which the first's logits are 0, in loss and metrics."""
    logit, labels = random(2, 1, 12, 12) * 6 - 3, labelled(classes=2)
    pair = torch.cat([torch.zeros_like(logit), logit], 1)
    known = labels != 255
    expected = F.binary_cross_entropy_with_logits(logit[:, 0][known], labels[known].float(), reduction="sum")
    torch.testing.assert_close(SEGMENTATION.total(logit, labels), expected)
    torch.testing.assert_close(SEGMENTATION.total(pair, labels), expected)
    measures = [SEGMENTATION.measure(), SEGMENTATION.measure()]
    for measure, prediction in zip(measures, (logit, pair), strict=True):
        measure.update(prediction, labels)
    assert measures[0].compute() == measures[1].compute()
    with pytest.raises(HotswapError, match="labels must be from 0 to 1, "):
        SEGMENTATION.total(logit, labelled(classes=3))


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_depth(loss):
    depth = task(config.Depth(name="depth", loss=loss, border=2))
    found, truth = random(3, 1, 10, 12), random(3, 1, 10, 12, seed=1)
    total = depth.total(found, truth) / depth.count(truth)
    torch.testing.assert_close(total, {"l1": F.l1_loss, "l2": F.mse_loss}[loss](found, truth))
    inside = (found - truth)[..., 2:-2, 2:-2].square().mean((1, 2, 3)).sqrt()
    measure = depth.measure()
    measure.update(found[:2], truth[:2])
    measure.update(found[2:], truth[2:])
    assert measure.compute() == pytest.approx({"rmse": inside.mean().item()}, abs=1e-6)
    unit = torch.tensor([100.0, 1.0, 2.0])
    measure = depth.measure()
    measure.update(found, (truth, unit))
    assert measure.compute() == pytest.approx({"rmse": (inside * unit).mean().item()}, rel=1e-5)


def test_depth_that_is_not_known_counts_nowhere():
    depth = task(config.Depth(name="depth"))
    found, truth = random(3, 1, 10, 12).requires_grad_(), random(3, 1, 10, 12, seed=1)
    truth[0, :, :, 6:], truth[2] = math.nan, math.inf  # half of the first, all of the last
    known = F.mse_loss(found[0, :, :, :6], truth[0, :, :, :6], reduction="sum") + F.mse_loss(
        found[1], truth[1], reduction="sum"
    )
    assert depth.count(truth) == 60 + 120
    torch.testing.assert_close(depth.total(found, truth), known)
    depth.total(found, truth).backward()
    assert found.grad.isfinite().all()
    assert not found.grad[2].any()
    measure = depth.measure()
    measure.update(found.detach(), truth)
    of_images = [F.mse_loss(found[0, :, :, :6], truth[0, :, :, :6]).sqrt(), F.mse_loss(found[1], truth[1]).sqrt()]
    assert measure.compute() == pytest.approx({"rmse": torch.stack(of_images).mean().item()}, rel=1e-5)


def test_a_rim_that_leaves_nothing_is_refused():
    measure = task(config.Depth(name="depth", border=5)).measure()
    with pytest.raises(HotswapError, match="task.border must leave something of an image, got 5"):
        measure.update(random(1, 1, 10, 12), random(1, 1, 10, 12))


@pytest.mark.parametrize("loss", ["epe", "l1", "l2"])
def test_flow(loss):
    flow = task(config.Flow(name="flow", loss=loss))
    found, truth = 10 * random(2, 2, 6, 5), 10 * random(2, 2, 6, 5, seed=1)
    length = (found - truth).norm(dim=1)
    wanted = {"l1": F.l1_loss(found, truth), "l2": F.mse_loss(found, truth), "epe": length.mean()}[loss]
    torch.testing.assert_close(flow.total(found, truth) / flow.count(truth), wanted)
    measure = flow.measure()
    measure.update(found, truth)
    assert measure.compute() == pytest.approx({"epe": length.mean().item()}, rel=1e-6)
    measure.update(found, (truth, torch.tensor([3.0, 3.0])))
    assert measure.compute() == pytest.approx({"epe": 2 * length.mean().item()}, rel=1e-6)


def test_the_end_point_error_has_a_slope_where_it_is_0():
    found = torch.zeros(1, 2, 2, 2, requires_grad=True)
    task(config.Flow(name="flow")).total(found, torch.zeros(1, 2, 2, 2)).backward()
    assert found.grad.isfinite().all()


@pytest.mark.parametrize("settings", [config.Depth(name="depth"), config.Flow(name="flow")], ids=lambda s: s.name)
def test_maps_of_another_shape_are_refused(settings):
    with pytest.raises(HotswapError, match=r"the truth's shape \[1, 1, 4, 4\], got \[1, 2, 4, 4\]"):
        task(settings).total(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4))


class Gives(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, *inputs):
        return self.output


MAP = random(1, 2, 4, 4)


@pytest.mark.parametrize("output", [MAP, {"out": MAP, "aux": None}, {"logits": MAP}], ids=["tensor", "out", "logits"])
def test_a_map_is_found_in_what_networks_give_and_enlarged(output):
    assert torch.equal(predict(Gives(output), MAP), MAP)
    enlarged = predict(Gives(output), (MAP, MAP), torch.Size((8, 8)))
    torch.testing.assert_close(enlarged, F.interpolate(MAP, (8, 8), mode="bilinear"))


def test_images_of_a_batch_must_be_of_one_size():
    with pytest.raises(HotswapError, match=r"images of one batch must be of one size, got \(3, 4, 4\), \(3, 5, 4\)"):
        collate([(torch.zeros(3, 4, 4), torch.zeros(4, 4)), (torch.zeros(3, 5, 4), torch.zeros(5, 4))])


def test_items_of_several_tensors_are_stacked_each():
    item = ((torch.zeros(1, 2, 2), torch.ones(3, 4, 4)), (torch.ones(1, 4, 4), torch.tensor(2.0)))
    (low, guide), (truth, unit) = collate([item, item])
    assert [tuple(x.shape) for x in (low, guide, truth, unit)] == [(2, 1, 2, 2), (2, 3, 4, 4), (2, 1, 4, 4), (2,)]
