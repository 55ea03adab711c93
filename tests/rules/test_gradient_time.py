"""GRAD003 and INIT004 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.gradient.gradient_through_time import decay, gradient_through_time
from gradcheck.rules.initialization.recurrent_initialization import recurrent_initialization
from gradcheck.types.checks import Recurrence
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import Regularization, Run
from tests.literals import data, falling, layer, location, measurement, parameter, parameter_steps, run, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities


def recurrence(decades: float = 6.0, steps: int = 31, **overrides: Any) -> Recurrence:
    """An LSTM whose gradient shrinks by so many decades, evenly, from the last step to the first."""
    slope = decades / (steps - 1)
    gradients = tuple(10 ** (slope * (t - steps + 1)) for t in range(steps))
    values: dict[str, Any] = {"site": location(20), "hidden": 64, "gradients": gradients, "slope": slope}
    return Recurrence("lstm", overrides.pop("type", "LSTM"), steps=steps, **values | overrides)


def timed(*found: Recurrence, **overrides: Any) -> Measurement:
    """A model with these recurrences whose probe fails."""
    return measurement(**{"recurrences": found or (recurrence(),), "probe": stalled()} | overrides)


def at(factor: float) -> Run:
    """An experiment at `factor` times the user's rate that learns."""
    return run(falling(2.3, 0.5), name=f"rate x{factor:g}", rate_factor=factor, lr=1e-3 * factor)


class TestDecay:
    def test_it_is_the_ratio_of_the_ends_when_the_line_agrees(self):
        assert decay(recurrence(6.0)) == pytest.approx(6.0)

    def test_one_odd_step_decides_nothing(self):
        flat = recurrence(1.0)
        assert decay(recurrence(1.0, gradients=(1e-9, *flat.gradients[1:]))) == pytest.approx(1.0)

    def test_ends_and_line_that_disagree_are_no_trend(self):
        assert decay(recurrence(3.0, slope=-0.1)) == 0.0

    def test_a_gradient_that_underflowed_is_very_small(self):
        r = recurrence(30.0)
        assert decay(recurrence(30.0, gradients=(0.0, 0.0, *r.gradients[2:]))) == pytest.approx(30.0)

    def test_nothing_without_a_slope(self):
        assert decay(recurrence(6.0, slope=None)) == 0.0


class TestGradientThroughTime:
    @pytest.mark.parametrize(("size", "expected"), [(1.9, []), (2.1, ["error"]), (12.0, ["error"])])
    def test_a_decay_is_an_error_when_the_probe_fails(self, size, expected):
        assert severities(gradient_through_time, timed(recurrence(size))) == expected

    def test_the_finding_names_layer_steps_and_decades(self):
        f = only(gradient_through_time, timed())
        assert f.message.startswith("gradient shrinks on its way back through time in lstm (LSTM): from 1 at the last of 31 steps")
        assert "6 decades (limit 2), 0.2 per step" in f.message
        assert f.confirmed.startswith("by the probe") and f.location == location(20) and f.layers == ("lstm",)
        assert f.remedies[0].name == "forget-bias"

    @pytest.mark.parametrize(("size", "expected"), [(3.9, []), (4.1, ["info"])])
    def test_a_model_that_learns_clearly_gets_advice_only(self, size, expected):
        assert severities(gradient_through_time, timed(recurrence(size), probe=run())) == expected

    @pytest.mark.parametrize(("size", "expected"), [(3.9, []), (4.1, ["warning"])])
    def test_one_that_learns_a_little_gets_a_warning(self, size, expected):
        assert severities(gradient_through_time, timed(recurrence(size), probe=run(falling(2.3, 2.1)))) == expected

    def test_a_probe_too_short_to_fail_gives_advice(self):
        assert severities(gradient_through_time, timed(probe=stalled(steps=20))) == ["info"]

    def test_losses_at_every_step_get_advice_only(self):
        assert severities(gradient_through_time, timed(recurrence(12.0, every_step=True))) == ["info"]

    def test_synthetic_data_may_hold_nothing_to_learn(self):
        assert severities(gradient_through_time, timed(data=data(given=False))) == ["warning"]

    def test_trained_models_get_advice_only(self):
        assert severities(gradient_through_time, timed(pretrained=True)) == ["info"]

    @pytest.mark.parametrize(
        ("factor", "ratio", "size", "expected"),
        [
            (0.1, 0.01, 12.0, ["info"]),  # the rate was too high
            (10.0, 0.9e-3, 12.0, ["info"]),  # far too low
            (10.0, 1.1e-3, 12.0, ["error"]),  # steps as large as healthy ones are
            (10.0, 1.1e-3, 3.9, ["warning"]),
            (10.0, 0.9e-3, 3.9, []),
        ],
    )
    def test_a_rate_that_is_the_cure_acquits_the_layer(self, factor, ratio, size, expected):
        weights = (parameter(steps=parameter_steps(update_ratio=ratio)),)
        assert severities(gradient_through_time, timed(recurrence(size), experiments=(at(factor),), parameters=weights)) == expected

    def test_regularization_that_is_the_cause_acquits_it_too(self):
        lifted = Regularization(runs=(run(name="without decay", lifted=("decay",)),))
        assert severities(gradient_through_time, timed(regularization=lifted)) == ["info"]

    @pytest.mark.parametrize(("size", "expected"), [(-1.9, []), (-2.1, ["error"])])
    def test_growth(self, size, expected):
        found = findings(gradient_through_time, timed(recurrence(size, type="RNN")))
        assert [f.severity for f in found] == expected
        assert all("grows" in f.message and f.remedies[-1].name == "clip-gradient-norm" for f in found)

    def test_layers_that_shrink_are_one_finding(self):
        other = recurrence(8.0, type="GRU")
        f = only(gradient_through_time, timed(recurrence(), other))
        assert (
            "(GRU)" in f.message
            and "also in lstm" in f.message
            and [r.name for r in f.remedies[:2]] == ["chrono-init", "orthogonal-recurrent"]
        )

    @pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "RNNCell", "Own"])
    def test_gates_are_the_last_remedy_of_torchs_elman_layer_alone(self, kind):
        f = only(gradient_through_time, timed(recurrence(type=kind)))
        assert [r.name == "gated-recurrence" for r in f.remedies] == [False] * (len(f.remedies) - 1) + [kind == "RNN"]
        if kind == "RNN":
            assert f.remedies[-1].applicability == "unsafe" and f.remedies[-1].text.startswith("replace lstm by an LSTM")

    @pytest.mark.parametrize(
        ("layer_kind", "name", "offered"), [("recurrent", "RNN", True), ("recurrent", "Own", False), ("container", "RNN", False)]
    )
    def test_a_class_of_the_users_own_gets_no_gates_whatever_its_name(self, layer_kind, name, offered):
        f = only(gradient_through_time, timed(recurrence(type="RNN"), layers=(layer("lstm", layer_kind, type=name),)))
        assert ("gated-recurrence" in [r.name for r in f.remedies]) == offered

    def test_without_recurrence_it_does_not_apply(self):
        assert no_verdict(gradient_through_time, measurement()) == "not-applicable"


class TestRecurrentInitialization:
    @pytest.mark.parametrize(
        ("radius", "size", "expected"),
        [(0.69, 6.0, ["warning"]), (0.71, 6.0, []), (0.69, 1.9, []), (1.31, -3.0, ["warning"]), (1.29, -3.0, []), (1.31, -1.9, [])],
    )
    def test_radius_and_decay_must_both_speak(self, radius, size, expected):
        r = recurrence(size, type="RNN", spectral_radius=radius)
        assert severities(recurrent_initialization, timed(r)) == expected

    @pytest.mark.parametrize("healthy", [{"probe": run()}, {"data": data(given=False)}])
    def test_the_default_radius_is_left_in_peace_when_the_model_learns_or_cannot_be_judged(self, healthy):
        assert findings(recurrent_initialization, timed(recurrence(type="RNN", spectral_radius=0.59), **healthy)) == []

    @pytest.mark.parametrize(
        ("bias", "steps", "expected"),
        [(-0.51, 10, ["warning"]), (-0.49, 30, []), (0.0, 21, ["info"]), (0.0, 20, []), (0.29, 21, ["info"]), (0.31, 21, [])],
    )
    @pytest.mark.parametrize("probe", [run(), stalled()])
    def test_forget_bias(self, bias, steps, expected, probe):
        assert severities(recurrent_initialization, timed(recurrence(steps=steps, forget_bias=bias), probe=probe)) == expected

    @pytest.mark.parametrize("m", [measurement(), timed(recurrence(type="GRU")), timed(recurrence(forget_bias=-2.0), pretrained=True)])
    def test_where_it_does_not_apply(self, m):
        assert no_verdict(recurrent_initialization, m) == "not-applicable"
