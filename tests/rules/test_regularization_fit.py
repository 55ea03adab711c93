"""REG004 and REG005 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.regularization.over_regularized import over_regularized
from gradcheck.rules.regularization.overfitting import overfitting
from gradcheck.types.checks import Validation
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import Run
from tests.literals import data, measurement, run, stalled
from tests.rules.models import regularization, without
from tests.rules.verdicts import findings, no_verdict, only, severities


class TestOverfitting:
    def validated(self, loss: float, train: float = 0.5, error: float = 0.05, **overrides: Any) -> Measurement:
        v = {"start_loss": 2.3, "samples": 64} | overrides.pop("v", {})
        return measurement(**{"validation": Validation(train, loss, error, **v)} | overrides)

    @pytest.mark.parametrize(("error", "expected"), [(0.099, ["warning"]), (0.101, [])])
    def test_the_gap_is_compared_with_its_standard_error(self, error, expected):
        assert severities(overfitting, self.validated(0.8, error=error, v={"lowest": 0.6, "lowest_step": 40})) == expected

    @pytest.mark.parametrize(("loss", "train", "expected"), [(0.75, 0.49, ["info"]), (0.7, 0.49, []), (0.05, 0.03, ["info"])])
    def test_and_with_the_losses(self, loss, train, expected):
        assert severities(overfitting, self.validated(loss, train, error=0.001)) == expected

    @pytest.mark.parametrize(("lowest", "expected"), [(0.74, "info"), (0.71, "warning")])
    def test_a_rising_validation_loss_is_a_warning(self, lowest, expected):
        f = only(overfitting, self.validated(0.8, v={"lowest": lowest, "lowest_step": 40}))
        assert f.severity == expected and ("stop after about 40 steps" in f.remedies[0].text) == (expected == "warning")

    def test_so_is_one_above_its_start(self):
        assert severities(overfitting, self.validated(2.5)) == ["warning"]

    def test_a_part_of_the_data_is_learned_by_heart_anyway(self):
        assert severities(overfitting, self.validated(2.5, data=data(batches=32))) == ["info"]

    def test_without_validation_data(self):
        assert no_verdict(overfitting, measurement()) == "not-applicable"
        assert findings(overfitting, self.validated(0.8, probe=stalled())) == []


class TestOverRegularized:
    def over(self, *runs: Run, **overrides: Any) -> Measurement:
        return measurement(**{"probe": stalled(), "regularization": regularization(*runs)} | overrides)

    def test_all_of_it_together(self):
        alone = (without("dropout", end=2.3), without("weight decay", end=2.3))
        f = only(over_regularized, self.over(*alone, without("dropout", "weight decay")))
        assert f.severity == "warning" and f.message.startswith("dropout and weight decay together keep the model from learning")

    def test_one_that_is_the_reason_has_a_rule_of_its_own(self):
        assert findings(over_regularized, self.over(without("dropout"), without("dropout", "weight decay"))) == []

    def test_smoothed_labels_have_none(self):
        assert severities(over_regularized, self.over(without("label smoothing"))) == ["warning"]

    @pytest.mark.parametrize(("end", "expected"), [(1.95, 0), (1.5, 1)])
    def test_the_loss_must_fall_by_a_fifth(self, end, expected):
        assert len(findings(over_regularized, self.over(without("dropout", "weight decay", end=end)))) == expected

    def test_a_training_that_learns(self):
        assert findings(over_regularized, self.over(without("dropout", "weight decay"), probe=run())) == []
        assert no_verdict(over_regularized, measurement()) == "not-applicable"
