"""NORM005 and NORM006 on literal measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradcheck.rules.normalization.batchnorm_in_eval import batchnorm_in_eval
from gradcheck.rules.normalization.batchnorm_momentum import batchnorm_momentum
from tests.literals import diverged, norm, run, stalled, statistics
from tests.rules.models import FINE, WORSE, having
from tests.rules.verdicts import findings, no_verdict, only, severities


class TestInEval:
    faulty = norm(of_batch=False)

    @pytest.mark.parametrize(("probe", "expected"), [(run(), ["warning"]), (stalled(), ["error"]), (diverged(), ["error"])])
    def test_untouched_statistics_in_use(self, probe, expected):
        assert severities(batchnorm_in_eval, having(self.faulty, probe=probe)) == expected

    @pytest.mark.parametrize("changed", [{"of_batch": True}, {"fresh": False}, {"trains": False}])
    def test_each_condition_is_needed(self, changed):
        assert findings(batchnorm_in_eval, having(replace(self.faulty, **changed), probe=stalled())) == []

    def test_models_that_were_trained_before_are_not_judged(self):
        assert no_verdict(batchnorm_in_eval, having(self.faulty, pretrained=True)) == "not-applicable"


class TestMomentum:
    @pytest.mark.parametrize(
        ("momentum", "measured", "expected"),
        [
            (0.0, FINE, ["warning"]),
            (1.0, FINE, ["warning"]),
            (0.99, FINE, ["info"]),
            (0.99, WORSE, ["info"]),
            (0.99, statistics(2.0, 0.5), ["info"]),  # 0.9 of chance is 2.07
            (0.9, statistics(2.2, 0.5), ["warning"]),
            (0.89, statistics(2.2, 0.5), []),
            (0.01, WORSE, []),
            (0.009, WORSE, ["warning"]),  # 0.991 ** 100 = 0.40
            (0.009, FINE, ["info"]),
            (None, WORSE, []),
        ],
    )
    def test_values_and_what_they_do(self, momentum, measured, expected):
        assert severities(batchnorm_momentum, having(norm(momentum=momentum), normalization=measured)) == expected

    def test_a_slow_one_may_settle_in_a_long_run(self):
        slow = having(norm(momentum=0.009), normalization=WORSE, steps=400)  # 0.991 ** 400 = 0.027
        assert findings(batchnorm_momentum, slow) == []

    def test_frozen_pretrained_statistics_are_advice(self):
        assert severities(batchnorm_momentum, having(norm(momentum=0.0, fresh=False))) == ["info"]

    def test_the_remedy_knows_the_other_convention(self):
        f = only(batchnorm_momentum, having(norm(momentum=0.99), normalization=FINE))
        assert "or 0.01 if 0.99 was meant as the weight of the past" in f.remedies[0].text
