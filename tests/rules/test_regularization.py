"""REG rules on literal measurements."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradcheck.analysis.convergence import data_fall, training_outcome
from gradcheck.rules.regularization.decay_on_norm_and_bias import decay_on_norm_and_bias
from gradcheck.rules.regularization.decay_too_strong import decay_steps, decay_too_strong
from gradcheck.rules.regularization.dropout_too_strong import dropout_too_strong
from gradcheck.types.checks import Dropout, Penalty
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import Regularization, Run
from tests.literals import cost, data, diverged, falling, location, measurement, optimizer, parameter, run, stalled
from tests.rules.models import regularization, without
from tests.rules.verdicts import findings, no_verdict, only, severities


def decayed(decay: float, lr: float = 0.1, **overrides: Any) -> Measurement:
    weights = (parameter("fc1.weight", lr=lr, weight_decay=decay), parameter("fc1.bias", lr=lr))
    values: dict[str, Any] = {
        "parameters": weights,
        "optimizer": optimizer("SGD", lr=lr, weight_decay=decay, site=location(50)),
        "regularization": Regularization(),
    }
    return measurement(**values | overrides)


class TestDecayTooStrong:
    @pytest.mark.parametrize("probe", [stalled(), diverged()])
    def test_it_is_an_error_when_the_training_learns_without(self, probe):
        f = only(decay_too_strong, decayed(0.5, probe=probe, regularization=regularization(without("weight decay"))))
        assert f.severity == "error" and f.location == location(50) and "shrinks the weights by e in 20 steps" in f.message
        assert f.confirmed.startswith("by the probe: SGD at rate 0.1") and "without weight decay, 100 steps" in f.confirmed

    @pytest.mark.parametrize(
        "r",
        [
            regularization(without("weight decay", end=2.3)),
            regularization(without("dropout")),
            regularization(without("weight decay"), trained_loss=1.9),
            regularization(without("weight decay", end=2.0), trained_loss=2.12),
        ],
        ids=["no better without", "another kind", "it did learn", "hardly better"],
    )
    def test_no_error_unless_the_decay_is_the_reason(self, r):
        assert severities(decay_too_strong, decayed(0.01, probe=stalled(), regularization=r)) == []

    @pytest.mark.parametrize(("level", "without_decay", "expected"), [(0.38, 0.25, "error"), (0.38, 0.35, "info"), (0.27, 0.25, "info")])
    def test_an_error_where_decay_holds_the_loss_above_chance(self, level, without_decay, expected):
        """A GRU that cannot even put out the shares of its classes (0.255), which it comes to without the decay."""
        freed = replace(without("weight decay"), losses=falling(1.4, without_decay, 50) + (without_decay,) * 50, batches=16, ended="budget")
        probe = run(falling(1.4, level, 50) + (level,) * 250, batches=16)
        m = decayed(0.1, probe=probe, chance=0.255, regularization=regularization(freed, start_loss=1.4, trained_loss=level, chance=0.255))
        assert only(decay_too_strong, m).severity == expected

    def test_the_fall_is_that_of_the_data_and_against_the_better_of_start_and_chance(self):
        assert data_fall(Regularization(start_loss=4.0, trained_loss=1.5, chance=2.0)) == pytest.approx(0.25)
        assert data_fall(Regularization(start_loss=1.0, trained_loss=0.5, chance=2.0)) == pytest.approx(0.5)
        assert data_fall(Regularization(start_loss=2.0, trained_loss=math.inf)) == data_fall(Regularization()) == -math.inf

    def test_a_training_that_learns_is_never_an_error(self):
        assert severities(decay_too_strong, decayed(0.1, regularization=regularization(without("weight decay")))) == ["info"]

    @pytest.mark.parametrize(
        ("decay", "probe", "expected"),
        [
            (0.19, stalled(), ["info"]),
            (0.21, stalled(), ["warning"]),
            (0.21, run(), ["info"]),
            (0.0199, run(), []),
            (0.0201, run(), ["info"]),
        ],
    )
    def test_without_proof_fifty_steps_decide(self, decay, probe, expected):
        assert severities(decay_too_strong, decayed(decay, probe=probe)) == expected

    @pytest.mark.parametrize(("decay", "expected"), [(0.049, ["info"]), (0.051, ["warning"])])
    def test_or_half_an_epoch_when_that_is_more(self, decay, expected):
        assert severities(decay_too_strong, decayed(decay, probe=stalled(), data=data(batches=400))) == expected

    def test_the_fastest_decay_counts(self):
        weights = (parameter("a.weight", lr=0.1, weight_decay=0.1), parameter("b.weight", lr=1.0, weight_decay=0.1))
        assert decay_steps(measurement(parameters=weights)) == pytest.approx(10)

    def test_momentum_lets_decay_that_is_added_to_the_gradient_act_ten_times(self):
        weights = (parameter("a.weight", lr=0.1, weight_decay=0.01),)
        assert decay_steps(measurement(parameters=weights, optimizer=optimizer("SGD", momentum=0.9))) == pytest.approx(100)
        decoupled = optimizer("SGDW", momentum=0.9, decoupled=True)
        assert decay_steps(measurement(parameters=weights, optimizer=decoupled)) == pytest.approx(1000)

    def test_a_suspicion_goes_when_a_paired_training_shows_no_cost(self):
        suspected = decayed(0.1)
        assert findings(decay_too_strong, replace(suspected, costs=(cost("REG001", loss=0.5, changed=0.4),))) == []
        assert severities(decay_too_strong, replace(suspected, costs=(cost("REG001", loss=1.9, changed=0.4),))) == ["info"]

    def test_it_says_how_large_decoupled_decay_lets_the_weights_be(self):
        weights = (parameter("fc.weight", lr=0.01, weight_decay=50.0, std=0.07),)
        o = optimizer("AdamW", lr=0.01, weight_decay=50.0, decoupled=True, adaptive=True)
        f = only(decay_too_strong, measurement(parameters=weights, optimizer=o, regularization=Regularization()))
        assert "to 0.02 each at most, where those of fc.weight start at 0.07" in f.message

    def test_without_decay(self):
        assert no_verdict(decay_too_strong, measurement()) == "not-applicable"
        assert no_verdict(decay_too_strong, measurement(regularization=Regularization())) == "not-applicable"


class TestPenalty:
    def penalized(self, value: float, degree: float = 2.0, **overrides: Any) -> Measurement:
        r = regularization(without("penalty"), penalty=Penalty(value, 2.3, degree), chance=None)
        return measurement(**{"regularization": replace(r, **overrides.pop("r", {}))} | overrides)

    @pytest.mark.parametrize(("degree", "kind"), [(1.0, "L1"), (2.0, "L2"), (1.5, "L1 and L2")])
    def test_it_is_an_error_although_the_loss_falls(self, degree, kind):
        f = only(decay_too_strong, self.penalized(23.0, degree))
        assert f.severity == "error" and f"the {kind} penalty on the weights is 10 times the loss" in f.message
        assert "the loss of the data goes from 2.3 to 2.3; without penalty" in f.message

    def test_not_when_the_data_are_learned(self):
        assert findings(decay_too_strong, self.penalized(5.0, r={"trained_loss": 1.0})) == []
        assert severities(decay_too_strong, self.penalized(50.0, r={"trained_loss": 1.0})) == ["info"]

    @pytest.mark.parametrize(("value", "expected"), [(22.0, []), (24.0, ["warning"])])
    def test_without_proof_ten_times_the_loss_decides(self, value, expected):
        assert severities(decay_too_strong, self.penalized(value, r={"runs": ()})) == expected


class TestDecayOnNormAndBias:
    def test_biases_in_a_group_with_decay(self):
        both = (parameter("fc1.weight", weight_decay=0.1), parameter("fc1.bias", weight_decay=0.1))
        f = only(decay_on_norm_and_bias, measurement(parameters=both))
        assert f.severity == "info" and "acts on 1 biases and gains (fc1.bias)" in f.message

    def test_matrices_only(self):
        assert findings(decay_on_norm_and_bias, measurement(parameters=(parameter("fc1.weight", weight_decay=0.1),))) == []
        assert findings(decay_on_norm_and_bias, measurement(parameters=(parameter("fc1.bias", weight_decay=1e-8),))) == []
        assert no_verdict(decay_on_norm_and_bias, measurement()) == "not-applicable"


class TestManyDropouts:
    def slow(self, count: int, rate: float = 0.5, end: float = 1.9, **overrides: Any) -> Measurement:
        dropouts = tuple(Dropout(f"drop{i}", rate) for i in range(count))
        return measurement(probe=run(falling(2.3, end)), regularization=Regularization(dropouts), **overrides)

    @pytest.mark.parametrize(
        ("count", "rate", "end", "expected"), [(3, 0.5, 1.9, ["info"]), (2, 0.5, 1.9, []), (3, 0.49, 1.9, []), (3, 0.5, 0.5, [])]
    )
    def test_three_that_drop_half_in_a_slow_training(self, count, rate, end, expected):
        assert severities(dropout_too_strong, self.slow(count, rate, end)) == expected

    def test_not_when_less_of_it_was_seen_to_be_no_better(self):
        assert findings(dropout_too_strong, self.slow(3, costs=(cost("REG003", 1.9, 1.8),))) == []


class TestDropoutTooStrong:
    def dropped(self, rate: float, count: int = 2, runs: tuple[Run, ...] = (without("dropout"),), **r: Any) -> Measurement:
        dropouts = tuple(Dropout(f"drop{i}", rate, location(20 + i)) for i in range(count))
        return measurement(probe=stalled(), regularization=regularization(*runs, dropouts=dropouts, **r))

    @pytest.mark.parametrize(("rate", "count", "expected"), [(0.51, 1, "error"), (0.5, 2, "info"), (0.5, 3, "warning"), (0.4, 9, "info")])
    def test_rate_and_number_decide(self, rate, count, expected):
        f = only(dropout_too_strong, self.dropped(rate, count))
        assert f.severity == expected and f.location == location(20)

    def test_the_message_compares_both_trainings(self):
        f = only(dropout_too_strong, self.dropped(0.95))
        assert f.message.startswith("drop0 and drop1 drop 95 % of the values: 100 steps moved the loss from 2.3")
        assert "without dropout, 100 steps moved the loss" in f.confirmed

    def test_nothing_when_it_is_not_the_reason(self):
        assert findings(dropout_too_strong, self.dropped(0.79, runs=(without("dropout", end=2.3),))) == []
        assert findings(dropout_too_strong, self.dropped(0.8, trained_loss=1.2)) == []
        assert findings(dropout_too_strong, replace(self.dropped(0.79), probe=run())) == []

    @pytest.mark.parametrize(("noisy", "expected"), [(0.54, ["warning"]), (0.52, ["info"])])
    def test_dropout_that_evaluation_mode_leaves_on(self, noisy, expected):
        r = Regularization((drop := (Dropout("fc:dropout", 0.5, location(20)),)), staying=drop, staying_loss=noisy, quiet_loss=0.5)
        f = only(dropout_too_strong, measurement(regularization=r))
        assert [f.severity] == expected and f.location == location(20) and "evaluation mode leaves dropout of 50 % on in fc" in f.message

    def test_a_rate_beyond_all_use_is_advice_all_the_same(self):
        f = only(dropout_too_strong, replace(self.dropped(0.95), probe=run()))
        assert f.severity == "info" and f.location == location(20) and "drops 95 % of the values (limit 80 %)" in f.message

    @pytest.mark.parametrize(
        ("rate", "trained", "expected"),
        [(0.91, 2.05, "error"), (0.89, 2.05, "warning"), (0.91, 1.9, "warning"), (0.89, 1.9, None), (0.5, 2.05, None)],
    )
    def test_what_is_learned_behind_the_noise(self, rate, trained, expected):
        m = self.dropped(rate, runs=(without("dropout", end=0.9),), trained_loss=trained)
        assert training_outcome(m) == "learns"
        assert severities(dropout_too_strong, m) == ([expected] if expected else [])

    def test_without_dropout(self):
        assert no_verdict(dropout_too_strong, measurement()) == "not-applicable"
