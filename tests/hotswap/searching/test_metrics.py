"""The map in an output, and metrics by definition."""

import numpy as np
import pytest
import torch

from hotswap.errors import HotswapError
from hotswap.measure.edges import near_edges
from hotswap.network.predictions import layout_of
from hotswap.searching.tasks import Classes, Numbers, OneClass, task_for

SIZE = (6, 9)
SCORES = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(0))
LABELS = SCORES[0].argmax(0)
TRUTH = torch.randint(0, 4, SIZE, generator=torch.Generator().manual_seed(1))
TRUTH[0, :3] = 255


@pytest.mark.parametrize(
    ("output", "where", "labels"),
    [
        (SCORES, "", LABELS),
        (SCORES.permute(0, 2, 3, 1), "", LABELS),
        ({"aux": SCORES.flip(1), "out": SCORES}, "['out']", LABELS),
        ([SCORES, SCORES.flip(1)], "[0]", LABELS),
        ({"scores": torch.ones(1, 5), "map": SCORES}, "['map']", LABELS),
        (LABELS[None], "", LABELS),
        (LABELS[None, None], "", LABELS),
        (LABELS[None, ..., None].int(), "", LABELS),
        (SCORES[:, :1], "", (SCORES[0, 0] > 0).long()),
        (SCORES[:, 0], "", (SCORES[0, 0] > 0).long()),
        (SCORES[:, :1].sigmoid(), "", (SCORES[0, 0] > 0).long()),
    ],
    ids=[
        "scores",
        "channels last",
        "torchvision",
        "list",
        "dict",
        "labels",
        "one channel",
        "last",
        "logit",
        "flat",
        "sigmoid",
    ],
)
def test_the_map_is_seen_in_whatever_output(output, where, labels):
    layout = layout_of(output, SIZE)
    assert layout.where == where
    assert layout.size_of(output) == SIZE
    assert torch.equal(layout.labels_of(output), labels)


def test_a_smaller_map_is_told_by_its_ratio():
    layout = layout_of(torch.zeros(1, 33, 65, 33), (257, 512))
    assert layout.channels_last
    assert layout.channels == 33
    assert not layout_of(torch.zeros(1, 33, 33, 65), (257, 512)).channels_last
    assert layout_of(torch.zeros(1, 21, 8, 8), (257, 257)).channels == 21


@pytest.mark.parametrize("output", [torch.zeros(1, 10), {"boxes": torch.zeros(3, 4)}, None])
def test_no_map_is_refused(output):
    with pytest.raises(HotswapError, match=r"the network must give a map, \[B, C, H, W\]"):
        layout_of(output, SIZE)


def iou(predicted, truth, counts):
    classes = truth[counts].unique().tolist()
    values = [
        ((predicted == n) & (truth == n) & counts).sum() / (((predicted == n) | (truth == n)) & counts).sum()
        for n in classes
    ]
    return float(sum(values) / len(values))


def test_mean_iou_everywhere_and_near_edges():
    task = Classes(layout_of(SCORES, SIZE), 255)
    rows = task.measure(SCORES, task.prepare(TRUTH, SIZE))
    counts = TRUTH != 255
    assert float(task.metrics[0].value(rows["miou"])) == pytest.approx(iou(LABELS, TRUTH, counts))
    near = counts & near_edges(TRUTH[None], 3)[0]
    assert float(task.metrics[1].value(rows["edges"])) == pytest.approx(iou(LABELS, TRUTH, near))


def test_one_class_everywhere_and_near_its_edge():
    truth = torch.zeros(20, 30, dtype=torch.long)
    truth[5:15, 5:15] = 2
    predicted = truth.roll(1, dims=1)
    scores = torch.nn.functional.one_hot(predicted, 4).permute(2, 0, 1)[None].float()
    task = OneClass(layout_of(scores, (20, 30)), 255, 2, masks=False)
    rows = task.measure(scores, task.prepare(truth, (20, 30)))
    assert rows["iou"].tolist() == [90 / 110, 1]
    near = near_edges(truth[None], 3)[0]
    hits, union = ((truth == 2) & (predicted == 2) & near).sum(), (((truth == 2) | (predicted == 2)) & near).sum()
    assert rows["edges"].tolist() == [pytest.approx(float(hits / union)), 1]
    nothing = task.measure(scores, task.prepare(torch.zeros_like(truth), (20, 30)))
    assert (nothing["iou"].tolist(), nothing["edges"].tolist()) == ([0, 1], [0, 0])
    neither = task.measure(scores * 0, task.prepare(torch.zeros_like(truth), (20, 30)))
    assert neither["iou"].tolist() == [1, 1]


def test_numbers_whose_truth_is_known_count():
    depth = torch.rand(1, 1, *SIZE)
    truth = depth[0] + 2
    truth[0, 0, 0] = torch.nan
    task = Numbers(layout_of(depth, SIZE))
    assert task.measure(depth, task.prepare(truth, SIZE))["rmse"].tolist() == [pytest.approx(2), 1]
    assert task.measure(depth, task.prepare(truth * torch.nan, SIZE))["rmse"].tolist() == [0, 0]
    twice = torch.kron(truth, torch.ones(2, 2))
    assert task.measure(depth, task.prepare(twice, SIZE))["rmse"].tolist() == [pytest.approx(2), 1]


def test_end_point_errors_are_of_pixels_and_flow_is_in_those_of_the_map():
    flow = torch.rand(1, 2, *SIZE)
    truth = flow[0] + torch.tensor([3.0, 4.0])[:, None, None]
    task = Numbers(layout_of(flow, SIZE), "epe")
    assert task.measure(flow, task.prepare(truth, SIZE))["epe"].tolist() == [pytest.approx(5 * 54), 54]
    twice = torch.kron(truth * 2, torch.ones(2, 2))
    assert task.measure(flow, task.prepare(twice, SIZE))["epe"].tolist() == [pytest.approx(5 * 54), 54]


def fitted(output, metric="auto", **options):
    given = {"masks": False, "numbers": False, "class_index": None, "ignore": 255, "higher_is_better": True}
    return task_for(layout_of(output, SIZE), metric, **given | options)


def names(task):
    return [metric.name for metric in task.metrics]


@pytest.mark.parametrize(
    ("output", "options", "expected"),
    [
        (SCORES, {}, ["miou", "edges"]),
        (SCORES, {"metric": "edges"}, ["edges", "miou"]),
        (SCORES, {"class_index": 2}, ["iou", "edges"]),
        (SCORES[:, :1], {"masks": True}, ["iou", "edges"]),
        (SCORES[:, :2], {}, ["iou", "edges"]),
        (SCORES[:, :2], {"metric": "miou"}, ["miou", "edges"]),
        (SCORES[:, :1], {"numbers": True}, ["rmse"]),
        (SCORES[:, :2], {"numbers": True}, ["epe"]),
        (SCORES, {"metric": max}, ["max"]),
    ],
)
def test_the_metric_follows_from_map_and_labels(output, options, expected):
    assert names(fitted(output, **options)) == expected


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        (SCORES, {"masks": True}, "labels are masks of one class, and the network has 4: say which"),
        (SCORES, {"class_index": 4}, "class_index must be one of the network's 4 classes, got 4"),
        (SCORES, {"metric": "iou"}, "metric 'iou' is of one class"),
        (SCORES, {"metric": "miou", "class_index": 1}, "metric 'miou' is of several classes"),
        (SCORES[:, :1], {"metric": "miou", "numbers": True}, "metric must be rmse or epe where labels are numbers"),
        (LABELS[None], {"numbers": True}, "metric must be rmse or epe where labels are numbers"),
    ],
)
def test_what_does_not_fit_is_refused(output, options, message):
    with pytest.raises(HotswapError, match=message):
        fitted(output, **options)


def test_labels_that_are_no_class_of_the_network_are_refused():
    with pytest.raises(HotswapError, match="labels must be from 0 to 3, the network's classes, or 255"):
        fitted(SCORES).prepare(torch.full(SIZE, 7), SIZE)
    with pytest.raises(HotswapError, match="labels must be 0, 1, or 255 where nothing counts"):
        fitted(SCORES[:, :1]).prepare(torch.full(SIZE, 7), SIZE)
    with pytest.raises(HotswapError, match="labels must have the 1 channels of the network's map, got 2"):
        fitted(SCORES[:, :1], numbers=True).prepare(torch.zeros(2, *SIZE), SIZE)


def test_rows_add_up_over_images():
    task = fitted(SCORES)
    one, two = (task.measure(SCORES, task.prepare(truth, SIZE))["miou"] for truth in (TRUTH, TRUTH.flip(0)))
    both = np.stack([one, two]).sum(0)
    whole = iou(
        torch.cat([LABELS, LABELS]), torch.cat([TRUTH, TRUTH.flip(0)]), torch.cat([TRUTH, TRUTH.flip(0)]) != 255
    )
    assert float(task.metrics[0].value(both)) == pytest.approx(whole)
