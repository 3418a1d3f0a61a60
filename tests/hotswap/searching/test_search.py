"""`hotswap.search`: what it chooses and what it says, on networks and pictures where the answer is known."""

import blobs
import pytest
import torch

import hotswap
from hotswap.errors import HotswapError


@pytest.fixture(scope="module")
def batches():
    images, labels = zip(*(blobs.picture(seed) for seed in range(20)), strict=True)
    return [(torch.stack(images[i : i + 3]), torch.stack(labels[i : i + 3])) for i in range(0, 20, 3)]


def mean_iou(model, pairs):
    hits, union, true = torch.zeros(4), torch.zeros(4), torch.zeros(4)
    for image, labels in pairs:
        with torch.no_grad():
            predicted = model(image[None])[0].argmax(0)
        for n in range(4):
            hits[n] += ((predicted == n) & (labels == n)).sum()
            union[n] += ((predicted == n) | (labels == n)).sum()
            true[n] += (labels == n).sum()
    return float((hits / union)[true > 0].mean())


def test_where_colours_tell_classes_it_says_which_swap(batches):
    net = blobs.Coarse().eval()
    result = hotswap.search(net, batches)
    assert result.swap
    assert result.sentence.startswith("Swap this: resize_1 with footprint=")
    assert hotswap.status(net).plan is None
    others = [pair for batch in batches for pair in zip(*batch, strict=True)][
        8:
    ]  # those that had no part in the choice
    gain = result.chosen.gains["miou"]
    assert gain.images == len(others) == 12
    assert gain.plain == pytest.approx(mean_iou(net, others), abs=1e-6)
    assert gain.swapped == pytest.approx(mean_iou(result.network, others), abs=1e-6)
    assert gain.better > gain.margin > 0
    assert [each.gains["miou"].images for each in result.tried] == sorted(
        (each.gains["miou"].images for each in result.tried), reverse=True
    )
    assert len(result.tried) == 8


def test_where_the_image_says_nothing_it_says_leave_it():
    batches = [(blobs.picture(seed)[0][None], (torch.arange(96) > 48).long().expand(1, 64, 96)) for seed in range(12)]
    result = hotswap.search(blobs.Blind().eval(), batches)
    assert not result.swap
    assert result.network is None
    assert result.sentence.startswith("Leave it: ")


def test_a_network_without_an_enlargement_is_refused(batches):
    with pytest.raises(HotswapError, match="there is nothing to try: .*the network enlarges no map"):
        hotswap.search(torch.nn.Conv2d(3, 4, 3, padding=1), batches)
