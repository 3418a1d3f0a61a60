"""Sums that are split over programs, where there are too few of these to fill a device."""

import pytest
import torch
from interpreted import INTERPRETED
from sampled import sampled
from triton_calls import DTYPES, PRODUCTS, calls, check, on, on_device, run

from pac_ops.backends import triton as backend
from pac_ops.backends.triton import launch, split, tiles

pytestmark = [
    pytest.mark.filterwarnings("ignore:a 1x1 window", "ignore:.*FP_FUSION"),
    pytest.mark.usefixtures("poisoned"),
]


@pytest.fixture(params=[3, 10**6], ids=["3 parts", "a part a step"])
def parts(request, monkeypatch):
    """Every sum is split into so many parts, as far as it has steps. How many each had."""
    splits, seen = split.splits, []

    def into(programs, steps, most, multiprocessors):
        seen.append(splits(1, steps, most, request.param))
        return seen[-1]

    monkeypatch.setattr(launch, "PLANS", {})
    monkeypatch.setattr(split, "WORTH", 0)
    monkeypatch.setattr(split, "splits", into)
    monkeypatch.setattr(tiles, "multiprocessors", lambda device: 8)  # for the weight's gradient, split over pixels
    return seen


@on_device
@pytest.mark.parametrize(("case", "dtype"), sampled([*zip(PRODUCTS, DTYPES, strict=True)]), ids=str)
@pytest.mark.parametrize("operator", ["pacconv2d", "pacconv_transpose2d"])
def test_split_sums(operator, case, dtype, parts):
    check(operator, case, dtype)
    assert len(parts) == 2  # of the sum, and of the gradients of input and K
    assert min(parts) > 1


@on_device
def test_split_sums_are_the_same_every_time(parts):
    name, arguments = calls("pacconv2d", PRODUCTS[0], torch.float16)[0]
    once, again = (run(backend, name, on("cpu" if INTERPRETED else "cuda", arguments)) for _ in range(2))
    assert torch.equal(*once, *again)


@pytest.mark.skipif(INTERPRETED, reason="the same in either process")
def test_where_sums_are_split():
    """A multiprocessor gets a part; not where that saves too few steps, and not for sizes that are open."""
    assert split.splits(32, 72, 72, 132) == 4
    assert split.splits(32, 72, 3, 132) == 3
    assert split.splits(64, 36, 36, 132) == 1
    assert split.splits(132, 1000, 1000, 132) == split.splits(1024, 1000, 1000, 132) == 1
    assert split.splits(0, 1000, 1000, 132) == split.splits(object(), 1000, 1000, 132) == 1
