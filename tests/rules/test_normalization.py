"""NORM rules about batch normalization on literal measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradcheck.rules.normalization.batchnorm_in_eval import batchnorm_in_eval
from gradcheck.rules.normalization.batchnorm_momentum import batchnorm_momentum
from gradcheck.rules.normalization.batchnorm_small_batch import batchnorm_small_batch
from gradcheck.rules.normalization.bias_before_normalization import bias_before_normalization
from gradcheck.rules.normalization.dropout_before_batchnorm import dropout_before_batchnorm
from tests.literals import data, diverged, location, loop, measurement, norm, run, stalled, statistics
from tests.rules.models import FINE, WORSE, having
from tests.rules.verdicts import findings, no_verdict, only, severities

RULES = (batchnorm_small_batch, dropout_before_batchnorm, batchnorm_in_eval, batchnorm_momentum, bias_before_normalization)


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.code)
def test_models_without_batch_normalization_are_not_judged(rule):
    assert no_verdict(rule, measurement()) == "not-applicable"
    assert no_verdict(rule, having(norm("ln", batch=False))) == "not-applicable"


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.code)
def test_a_healthy_one_gets_nothing(rule):
    assert findings(rule, having(norm(), normalization=statistics())) == []


class TestSmallBatch:
    @pytest.mark.parametrize(
        ("values", "probe", "measured", "expected"),
        [
            (16.0, stalled(), WORSE, []),
            (15.0, run(), FINE, ["info"]),
            (15.0, run(), WORSE, ["warning"]),
            (15.0, stalled(), FINE, ["warning"]),
            (4.0, stalled(), WORSE, ["warning"]),
            (3.0, run(), FINE, ["warning"]),
            (3.0, run(), WORSE, ["warning"]),
            (3.0, run(), statistics(2.2, 0.5), ["error"]),  # 0.9 of chance is 2.07
            (3.0, run(), statistics(2.0, 0.5), ["warning"]),
            (3.0, stalled(), None, ["error"]),
            (3.0, diverged(), FINE, ["error"]),
        ],
    )
    def test_the_number_of_values_and_what_they_do(self, values, probe, measured, expected):
        m = having(norm(values=values), norm("other"), probe=probe, normalization=measured)
        assert severities(batchnorm_small_batch, m) == expected

    def test_the_message_has_the_worst(self):
        f = only(batchnorm_small_batch, having(norm("a", values=8.0), norm("b", values=2.0, site=location(61)), normalization=WORSE))
        assert "a and b take mean and variance over 2 values per feature (limit 4; batches of 32)" in f.message
        assert "loss 0.76 in evaluation mode, 0.5 with" in f.message
        assert f.location == location(61) and "at least 256 samples" in f.remedies[0].text

    def test_frozen_statistics_and_made_up_data_are_not_judged(self):
        assert findings(batchnorm_small_batch, having(norm(values=2.0, of_batch=False))) == []
        assert no_verdict(batchnorm_small_batch, having(norm(values=2.0), data=data(given=False))) == "not-applicable"

    def test_what_torch_refuses_is_an_error(self):
        refused = norm(values=1.0, raised="ValueError: Expected more than 1 value per channel when training")
        m = having(norm(), refused, probe=run([2.3] * 7, ended="raised"), data=data(batches=8))
        f = only(batchnorm_small_batch, m)
        assert f.severity == "error" and f.message.startswith("batch 7 leaves bn 1 value per feature")
        assert "drop_last" in f.remedies[0].text


class TestDropout:
    def near(self, shift: float | None, **more: Any) -> Any:
        return norm(dropout="drop", dropout_rate=0.3, dropout_shift=shift, **more)

    @pytest.mark.parametrize(("shift", "expected"), [(1.19, []), (1.21, ["info"]), (2.01, ["warning"])])
    def test_directly_behind_it(self, shift, expected):
        assert severities(dropout_before_batchnorm, having(self.near(shift), normalization=statistics())) == expected

    @pytest.mark.parametrize(
        ("shift", "measured", "expected"),
        [
            (1.19, (0.76, 0.5), []),
            (1.21, (0.74, 0.5), ["info"]),
            (1.21, (0.76, 0.5), ["warning"]),
            (1.21, (0.32, 0.1), ["info"]),
            (1.21, (0.34, 0.1), ["warning"]),
        ],
    )
    def test_further_away_the_loss_must_show_it(self, shift, measured, expected):
        m = having(self.near(None), normalization=statistics(*measured, shifts=(shift,)))
        assert severities(dropout_before_batchnorm, m) == expected

    @pytest.mark.parametrize(("rate", "expected"), [(0.16, []), (0.17, ["info"])])
    def test_unmeasured_it_is_that_of_centred_inputs(self, rate, expected):
        assert severities(dropout_before_batchnorm, having(norm(dropout="drop", dropout_rate=rate))) == expected

    def test_the_message_and_one_finding_a_site(self):
        same, other = self.near(2.5, index=1), self.near(1.5, site=location(61))
        found = findings(dropout_before_batchnorm, having(self.near(1.3), replace(same, layer="bn2"), replace(other, layer="bn3")))
        assert len(found) == 2
        assert "dropout drop (30 %) feeds bn2 directly: in training it sees 2.5 times the variance of evaluation" in found[0].message

    def test_without_running_statistics_evaluation_is_as_training(self):
        assert findings(dropout_before_batchnorm, having(self.near(2.0, tracks=False))) == []

    @pytest.mark.parametrize(("against", "expected"), [(False, ["warning"]), (True, ["info"])])
    def test_a_discriminator_is_not_evaluated(self, against, expected):
        m = having(self.near(6.5), normalization=statistics(), loop=loop(played_against=against))
        assert severities(dropout_before_batchnorm, m) == expected
