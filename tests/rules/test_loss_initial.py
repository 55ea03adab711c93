"""LOSS003 on literal measurements."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradcheck.rules.loss.initial_loss import initial_loss
from gradcheck.types.measurement import Measurement
from tests.literals import data, loss_call, measurement, parameter, parameter_steps, run
from tests.rules.models import CHANCE
from tests.rules.verdicts import no_verdict, only, severities


def starting_at(ratio: float, after: float = 1.6, **overrides) -> Measurement:
    """A probe that starts at `ratio` times chance and is at `after` times chance from the second step on."""
    return measurement(probe=run((ratio * CHANCE, *([after * CHANCE] * 50))), **overrides)


class TestInitialLoss:
    @pytest.mark.parametrize(("ratio", "expected"), [(1.54, []), (2.9, []), (3.1, ["warning"])])
    def test_far_above_chance_is_a_warning(self, ratio, expected):
        assert severities(initial_loss, starting_at(ratio)) == expected

    @pytest.mark.parametrize(("after", "expected"), [(1.4, ["info"]), (1.6, ["warning"])])
    def test_what_comes_near_chance_at_once_is_advice(self, after, expected):
        assert severities(initial_loss, starting_at(3.6, after)) == expected

    @pytest.mark.parametrize(("ratio", "expected"), [(9.0, ["info"]), (11.0, ["warning"])])
    def test_ten_times_chance_is_a_warning_in_any_case(self, ratio, expected):
        assert severities(initial_loss, starting_at(ratio, 1.0)) == expected

    @pytest.mark.parametrize(("late", "expected"), [(10, ["info"]), (11, ["warning"])])
    def test_coming_near_chance_late_does_not_count(self, late, expected):
        losses = [5 * CHANCE] * late + [CHANCE] * 20
        assert severities(initial_loss, measurement(probe=run(losses))) == expected

    def test_the_message_names_head_loss_and_chance(self):
        f = only(initial_loss, starting_at(5.0))
        assert "first loss is 11.5, 5 times" in f.message and "2.3" in f.message and f.layers == ("fc2",)
        assert "fc2 by about 0.2" in f.remedies[0].text

    def test_unknown_or_tiny_chance_is_not_judged(self):
        assert no_verdict(initial_loss, measurement(chance=None)) == "not-applicable"
        assert no_verdict(initial_loss, measurement(chance=9e-4)) == "not-applicable"

    def test_regression_on_made_up_targets_is_advice(self):
        assert severities(initial_loss, starting_at(20.0, losses=(loss_call("mse_loss"),), data=data(given=False))) == ["info"]

    @pytest.mark.parametrize(
        ("function", "size", "expected"), [("mse_loss", 1.9, []), ("mse_loss", 2.2, ["warning"]), ("l1_loss", 4.4, [])]
    )
    def test_targets_that_are_far_away_are_no_fault_of_the_head(self, function, size, expected):
        """Outputs of this size cost (ratio - 1) times chance, 4.6, by themselves from 2.15 on (squared) or 4.6 (absolute)."""
        call = loss_call(function, input_mean=0.0, input_std=size, target_mean=30.0, target_std=1.5, target_kind="values")
        assert severities(initial_loss, starting_at(20.0, losses=(call,))) == expected

    def test_a_probe_without_steps_is_not_measured(self):
        assert no_verdict(initial_loss, measurement(probe=run((1.0,), name="probe").__class__("probe", ()))) == "not-measured"

    @pytest.mark.parametrize(("along", "expected"), [(0.1, []), (22.0, ["warning"])])
    def test_a_loss_that_scales_normalised_outputs_itself_is_no_fault_of_the_head(self, along, expected):
        """ArcFace: the excess is 20.7; a head whose outputs are the logits has at least as much in the product with its gradient."""
        head = parameter("fc2.weight", steps=parameter_steps(1.0, along=along))
        assert severities(initial_loss, starting_at(10.0, parameters=(head,))) == expected

    def test_a_head_that_a_normalization_follows_cannot_be_too_large(self):
        """An embedding that ends in batch normalization, below ArcFace: the scale of its last layer changes nothing."""
        m = starting_at(10.0)
        layers = tuple(replace(x, normalized=x.head) for x in m.layers)
        assert severities(initial_loss, replace(m, layers=layers)) == []
