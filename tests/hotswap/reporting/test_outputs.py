"""How outputs are compared and drawn."""

import pytest
import torch

from hotswap import colours
from hotswap.reporting import outputs


def test_labels_that_changed_are_counted():
    plain = torch.zeros(1, 4, 5, 6)
    plain[0, 2] = 1
    swapped = plain.clone()
    swapped[0, 3, 0, :3] = 2
    made = outputs.compare({"out": plain}, {"out": swapped})
    assert (made.kind, made.where, made.changed) == ("labels", "output['out']", pytest.approx(0.1))
    assert [(label.number, label.plain, label.swapped) for label in made.labels] == [
        (2, 1.0, pytest.approx(0.9)),
        (3, 0.0, pytest.approx(0.1)),
    ]
    assert [panel.caption for panel in made.panels] == ["plain", "swapped", "changed: 10.00% of pixels"]
    assert "10.00% of pixels" in outputs.summary([made, None])


@pytest.mark.parametrize(
    ("shape", "wanted", "kind"),
    [
        ((1, 1, 4, 4), "auto", "maps"),
        ((1, 3, 4, 4), "auto", "picture"),
        ((1, 2, 4, 4), "auto", "labels"),
        ((1, 3, 4, 4), "labels", "labels"),
        ((1, 1, 4, 4), "labels", "labels"),
        ((1, 8, 4, 4), "maps", "maps"),
        ((1, 10), "auto", "scores"),
        ((1, 10, 1, 1), "auto", None),
        ((1, 7, 16), "auto", None),
        ((0, 4), "auto", None),
        ((), "auto", None),
    ],
)
def test_outputs_are_drawn_by_their_shape(shape, wanted, kind):
    made = outputs.compare([torch.rand(shape)], [torch.rand(shape)], wanted)
    assert (None if made is None else made.kind) == kind


def test_labels_of_one_channel_are_those_of_a_binary_logit():
    plain, swapped = torch.full((1, 1, 4, 5), -1.0), torch.full((1, 1, 4, 5), -1.0)
    plain[0, 0, 0], swapped[0, 0, :2] = 2, 2
    made = outputs.compare(plain, swapped, "labels")
    assert made.changed == pytest.approx(0.25)
    assert {label.number: (label.plain, label.swapped) for label in made.labels} == {0: (0.75, 0.5), 1: (0.25, 0.5)}


def test_scores_are_told_of_the_largest_of_either():
    plain, swapped = torch.zeros(1, 9), torch.zeros(1, 9)
    plain[0, 4], swapped[0, 7] = 5, 5
    made = outputs.compare(plain, swapped)
    assert {score.number for score in made.scores[:5]} >= {4, 7}
    assert made.scores[0].number == 4
    assert (made.changed, made.probabilities) == (1.0, True)
    assert "1 of 1 images" in outputs.summary([made])
    already = torch.full((1, 4), 0.25)
    assert outputs.compare(already, already).scores[0].plain == 0.25


def test_maps_and_their_difference_are_seen():
    plain, swapped = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    plain[..., 0, 0], swapped[..., 3, 3] = 1, 0.4
    made = outputs.compare(plain, swapped)
    assert made.panels[2].caption.startswith("swapped - plain: blue -")
    palette = colours.difference_palette()
    assert palette[128].tolist() == [255, 255, 255]
    assert palette[0][2] > palette[0][0]
    assert palette[255][0] > palette[255][2]
    assert outputs.compare(plain, plain * torch.nan) is not None


def test_what_detectors_give_is_left_undrawn():
    boxes = [{"boxes": torch.rand(1, 4), "scores": torch.rand(1)}]
    assert outputs.compare(boxes, boxes) is None
    assert outputs.compare(boxes, [{"boxes": torch.rand(2, 4)}]) is None
