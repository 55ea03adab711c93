"""GRAD005 and OPT006 on literal measurements."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradcheck.rules.gradient.gradient_outliers import gradient_outliers
from gradcheck.rules.optimization.batch_size import batch_size
from gradcheck.types.checks import SampleGradients
from gradcheck.types.measurement import Measurement
from tests.literals import data, measurement
from tests.rules.verdicts import findings, no_verdict, only, severities


def sampled(largest: float = 2.0, count: int = 8, **overrides: Any) -> Measurement:
    """Samples whose gradient norms are 1, but for the one with index 5 of the batch."""
    values: dict[str, Any] = {"norms": (largest, *(1.0,) * (count - 1)), "batch": 64, "largest": 5}
    return measurement(samples=SampleGradients(**values | overrides))


def noisy(low: float, scale: float, high: float, batch: int = 64) -> Measurement:
    return sampled(batch=batch, noise_scale=scale, noise_low=low, noise_high=high, draws=8)


class TestGradientOutliers:
    @pytest.mark.parametrize(("largest", "expected"), [(9.9, []), (10.1, ["info"])])
    def test_one_sample_against_the_median(self, largest, expected):
        assert severities(gradient_outliers, sampled(largest)) == expected

    def test_it_names_the_sample(self):
        assert only(gradient_outliers, sampled(40.0)).message.startswith("gradient of sample 5 of the first batch is 40 times")

    def test_zero_gradients_are_no_reference(self):
        assert findings(gradient_outliers, sampled(norms=(1.0, *(0.0,) * 7))) == []

    def test_where_it_says_nothing(self):
        assert no_verdict(gradient_outliers, sampled(40.0, 7)) == "not-measured"
        assert no_verdict(gradient_outliers, measurement()) == "not-measured"
        assert no_verdict(gradient_outliers, measurement(data=data(given=False))) == "not-applicable"


class TestBatchSize:
    @pytest.mark.parametrize(("high", "expected"), [(24.9, ["info"]), (25.1, []), (math.inf, [])])
    def test_wasteful_only_when_the_upper_end_says_so(self, high, expected):
        assert severities(batch_size, noisy(10.0, 15.0, high, batch=1000)) == expected

    @pytest.mark.parametrize(("low", "expected"), [(7.9, []), (8.1, ["info"])])
    def test_samples_that_all_ask_for_the_same_give_no_advice(self, low, expected):
        assert severities(batch_size, noisy(low, 9.0, 10.0, batch=1000)) == expected

    @pytest.mark.parametrize(("low", "expected"), [(1919.0, []), (1921.0, ["info"])])
    def test_noisy_only_when_the_lower_end_says_so(self, low, expected):
        assert severities(batch_size, noisy(low, 4000.0, math.inf)) == expected

    def test_the_interval_is_in_the_message(self):
        f = only(batch_size, noisy(9.0, 13.0, 18.0, batch=1000))
        assert "13 samples (9 to 18, 8 draws)" in f.message and "batches of about 128 samples" in f.remedies[0].text
        f = only(batch_size, noisy(2000.0, 4000.0, math.inf))
        assert "(2000 to any number, 8 draws)" in f.message

    def test_where_it_says_nothing(self):
        assert no_verdict(batch_size, sampled()) == "not-measured"
        assert no_verdict(batch_size, noisy(2e13, 9e13, math.inf)) == "not-measured", "a loss at its minimum"
        assert no_verdict(batch_size, measurement()) == "not-measured"
        assert no_verdict(batch_size, measurement(data=data(given=False))) == "not-applicable"
