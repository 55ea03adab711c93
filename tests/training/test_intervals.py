"""Student's t and paired intervals, against scipy and by hand."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from gradcheck.training.paired import paired_interval, t_p_value, t_quantile


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29])
@pytest.mark.parametrize("t", [0.0, 0.3, -1.7, 4.0, 12.0])
def test_p_values_are_those_of_scipy(freedom, t):
    assert t_p_value(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), abs=1e-9)


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30])
def test_quantiles_are_those_of_scipy(freedom):
    assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-6)


def test_a_paired_interval_is_that_of_scipys_one_sample_test():
    differences = [-0.3, -0.1, -0.25, -0.4]
    known = stats.ttest_1samp(differences, 0)
    interval = paired_interval(differences)
    low, high = known.confidence_interval()
    assert (interval.low, interval.high, interval.p) == pytest.approx((low, high, known.pvalue))


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_the_interval_holds_the_truth_in_95_of_100_draws(seeds):
    dice = random.Random(seeds)
    held = 0
    for _ in range(2000):
        interval = paired_interval([dice.gauss(0.2, 1.0) for _ in range(seeds)])
        held += interval.low <= 0.2 <= interval.high
    assert 0.93 < held / 2000 < 0.97


def test_one_difference_says_nothing():
    interval = paired_interval([-5.0])
    assert (interval.low, interval.high, interval.p) == (-math.inf, math.inf, 1.0)


def test_infinite_differences_are_told_by_their_sign():
    assert paired_interval([-math.inf] * 3).high == -math.inf
    mixed = paired_interval([-math.inf, 0.5, -math.inf])
    assert (mixed.low, mixed.high) == (-math.inf, 0.5) and mixed.p == 1.0
    assert paired_interval([-math.inf] * 6).p == pytest.approx(2 / 64)


def test_splits_of_the_same_samples_widen_the_interval_as_nadeau_and_bengio_say():
    differences = [-0.3, -0.1, -0.25, -0.4]
    plain, corrected = paired_interval(differences), paired_interval(differences, overlap=0.25)
    widened = (corrected.high - corrected.low) / (plain.high - plain.low)
    assert widened == pytest.approx(((1 / 4 + 0.25) / (1 / 4)) ** 0.5)


def test_the_error_of_the_validation_sample_is_added_to_that_of_the_seeds():
    interval = paired_interval([-0.2, -0.2, -0.2], sampling_error=0.1)
    assert interval.high - interval.mean == pytest.approx(0.1 * stats.t.ppf(0.975, 2))


def test_more_confidence_is_a_wider_interval():
    differences = [-0.3, -0.1, -0.25]
    assert paired_interval(differences, confidence=0.99).low < paired_interval(differences).low
