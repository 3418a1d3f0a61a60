"""Paired gains and their intervals, against scipy and by definition."""

import math

import numpy as np
import pytest
from scipy import stats

from hotswap.searching.statistics import gain, student
from hotswap.searching.tasks import mean_iou, mean_of_images


@pytest.mark.parametrize("degrees", [3, 4, 7, 12, 30, 59, 500])
def test_students_t(degrees):
    assert student(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.01)


def rows(values):
    return np.stack([values, np.ones_like(values)], axis=1)


@pytest.mark.parametrize("higher", [True, False])
def test_of_a_mean_over_images_it_is_the_paired_t_interval(higher):
    chance = np.random.default_rng(1)
    plain = chance.normal(0.7, 0.2, 24)
    swapped = plain + chance.normal(0.02, 0.03, 24)
    result = gain(rows(plain), rows(swapped), mean_of_images, higher_is_better=higher)
    expected = stats.ttest_rel(swapped, plain).confidence_interval()
    assert (result.plain, result.swapped) == (pytest.approx(plain.mean()), pytest.approx(swapped.mean()))
    assert result.better == pytest.approx((swapped - plain).mean() * (1 if higher else -1))
    assert result.margin == pytest.approx((expected.high - expected.low) / 2, rel=0.05)
    assert result.is_clear is bool(higher and expected.low > 0)


def test_images_that_do_not_count_are_left_out():
    plain, swapped = rows(np.array([0.5, 0.6, 0.7])), rows(np.array([0.6, 0.6, 0.8]))
    plain[1] = swapped[1] = 0
    result = gain(plain, swapped, mean_of_images, higher_is_better=True)
    assert (result.plain, result.swapped) == (pytest.approx(0.6), pytest.approx(0.7))


def test_the_interval_covers_the_true_gain_of_mean_iou_about_19_times_of_20():
    """Of images whose pixels of three classes are drawn, the swapped network right a little more often."""
    chance = np.random.default_rng(2)

    def images(count, right):
        truth = chance.dirichlet(np.ones(3) * 2, count) * 1000
        hits = truth * np.clip(right + chance.normal(0, 0.1, (count, 1)), 0, 1)
        return truth, hits

    def row(truth, hits):
        missed = truth - hits
        return np.concatenate([hits, hits + np.roll(missed, 1, axis=1), truth], axis=1)

    truth, hits = images(20_000, 0.7)
    better = hits + (truth - hits) * 0.1
    true_gain = float(mean_iou(row(truth, better).sum(0)) - mean_iou(row(truth, hits).sum(0)))
    covered = 0
    for start in range(0, 4000, 20):
        part = slice(start, start + 20)
        result = gain(row(truth[part], hits[part]), row(truth[part], better[part]), mean_iou, higher_is_better=True)
        covered += abs(result.better - true_gain) <= result.margin
    assert 0.9 <= covered / 200 <= 0.995


def test_one_image_has_no_interval_and_is_never_clear():
    result = gain(rows(np.array([0.1])), rows(np.array([0.9])), mean_of_images, higher_is_better=True)
    assert math.isnan(result.margin)
    assert not result.is_clear
    assert result.to_dict()["margin"] is None
