"""What a report measures, and on which samples."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from reported import ANYTHING, IMAGES, Page, converted
from torch import nn

import hotswap
from hotswap.reporting import cost, figures, samples, timing


def test_a_histogram_counts_what_lies_outside_too():
    seen = figures.Histogram()
    seen.add(torch.tensor([0.0, 0.5, 1.0, 1.0, 1.5, -0.5, torch.nan, torch.inf]))
    assert (seen.below, seen.above, seen.not_finite) == (1, 1, 2)
    assert sum(seen.bars) == pytest.approx(4 / 6)
    assert seen.bars[-1] == pytest.approx(2 / 6)
    assert seen.quantile(0.5) == pytest.approx(0.5, abs=2e-3)
    assert figures.Histogram().quantile(0.5) is None


def test_pixels_are_chosen_where_neighbours_count_least_and_most():
    change = torch.full((40, 60), 0.2)
    change[10, 20], change[30, 50], change[25:30, 5:10] = 0.9, 0.8, 0.0
    first, second, _, last = figures._places(change)
    assert [int(first[0] * 40), int(first[1] * 60)] == [10, 20]
    assert [int(second[0] * 40), int(second[1] * 60)] == [30, 50]
    assert 25 <= last[0] * 40 < 30
    assert 5 <= last[1] * 60 < 10
    assert len(list(figures._places(torch.zeros(4, 4)))) == 1


def test_a_guide_that_is_not_finite_is_told(tmp_path):
    result = hotswap.report(converted(), IMAGES * torch.nan, tmp_path / "r.html", limit=1)
    assert any("not finite" in text for text in result.content.warnings)
    json.dumps(result.to_dict(), allow_nan=False)


def test_memory_is_of_tensors_alive_together():
    x = torch.rand(1000)

    def chain():
        y = x + 1  # 4 kB
        z = y * 2  # 8 kB together
        del y
        return z.add_(1).view(10, 100).exp()  # 8 kB again

    assert timing.peak(chain) == 8000
    assert timing.peak(lambda: x.view(10, 100)) == 0


def test_times_that_vary_are_told():
    calm, busy = timing.Use(1.0, 0, 0.1), timing.Use(1.0, 0, 0.9)
    told = [cost.Costs(cost.Cost(calm, use), {}, "").unsteady for use in (calm, busy)]
    assert told == [False, True]
    (use,) = timing.measured([lambda: torch.ones(4)], torch.device("cpu"))
    assert use.bytes == 16
    assert use.milliseconds > 0


@pytest.mark.parametrize("method", ["fx", "hooks"])
def test_each_target_is_timed_with_its_distances_also_where_they_are_shared(tmp_path, method):
    net = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)])
    model = hotswap.convert(net, ["1", "2"], "0", guide_scale=1.0, method=method)
    costs = hotswap.report(model, IMAGES, tmp_path / "r.html", limit=1).content.costs
    assert list(costs.targets) == ["1", "2"]
    distances = 3 * 3 * IMAGES[0, 0].numel() * IMAGES.element_size()
    assert all(c.swapped.bytes >= c.plain.bytes + distances for c in costs.targets.values())


def test_batches_are_taken_apart_up_to_the_limit():
    pairs = [(IMAGES, torch.arange(2.0), "mode"), (IMAGES, torch.arange(2.0), "mode")]
    found = samples.from_batches(ANYTHING, pairs, 3)
    items = list(found.items)
    assert (found.count, found.description) == (3, "3 images, the first of those given")
    assert [tuple(x.shape) for x in items[1].arguments[:2]] == [(1, 3, 24, 32), (1,)]
    assert items[1].arguments[1].item() == 1
    assert items[1].arguments[2] == "mode"
    assert items[0].picture.min() == 0
    assert items[0].picture.max() == 255
    (whole,) = samples.from_batches(ANYTHING, [([IMAGES[0]],)], 3).items
    assert whole.picture is None


def test_a_folder_is_sampled_evenly_and_says_so(tmp_path):
    for index in range(10):
        Image.fromarray(np.full((6, 8, 3), 20 * index, np.uint8)).save(tmp_path / f"{index}.png")
    result = hotswap.report(converted(), tmp_path, tmp_path / "r.html", limit=2, input_size=(3, 16, 24), mean=(0.5,))
    assert [image.name for image in result.content.images] == ["0.png", "5.png"]
    assert result.content.origin.images == f"2 images of 10, evenly spread, from {tmp_path}"
    assert result.content.origin.images in Page(tmp_path / "r.html").text
    assert "mean=(0.5,)" in result.content.steps.python
