"""NUM rules on literal measurements."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gradcheck.rules.numerics.non_finite import non_finite
from gradcheck.rules.numerics.singular_derivative import singular_derivative
from gradcheck.types.measurement import Measurement, NotMeasured
from gradcheck.types.training import NonFinite
from tests.literals import data, location, loss_call, measurement, optimizer, parameter_steps, run, stalled, with_parameter
from tests.rules.verdicts import findings, no_verdict, only, severities


def event(direction="forward", operation="log", **overrides) -> NonFinite:
    values = {"layer": "fc2", "site": location(21), "step": 0, "kind": "nan", "input_min": -0.5, "input_max": 1.0}
    return NonFinite(direction, operation, **values | overrides)


def breaking(*events: NonFinite, at: int = 0, **overrides) -> Measurement:
    """The probe's loss becomes NaN at the given step."""
    probe = run((*([2.3] * at), math.nan), ended="non-finite", gradient_norms=(1.0,) * at)
    return measurement(**{"non_finite": events, "probe": probe} | overrides)


def bad_gradients(*events: NonFinite, **overrides) -> Measurement:
    """Losses are finite, but a gradient is not."""
    m = measurement(non_finite=events, probe=run((2.3, math.nan), ended="non-finite", gradient_norms=(math.nan,)), **overrides)
    return with_parameter(m, "fc1.weight", steps=parameter_steps(gradient_norm=math.nan, gradient_finite=False))


class TestNonFinite:
    def test_a_finite_training_passes(self):
        assert findings(non_finite, measurement()) == []

    def test_the_first_operation_is_the_headline(self):
        f = only(non_finite, breaking(event("loss", "mean", layer="", step=2), event(step=0)))
        assert f.severity == "error" and f.confirmed == "by the measured value alone" and f.location == location(21)
        assert "log in fc2 gives NaN at step 0" in f.message and "-0.5 to 1" in f.message
        assert "clamp(x, min=1e-8)" in f.remedies[0].text

    @pytest.mark.parametrize(
        ("reason", "says", "cure"),
        [
            (("masked rows", 1, 64), "every key is masked in 1 of 64 rows", "at least one key"),
            (("long targets", 3, 8), "the target of 3 of 8 samples is longer", "zero_infinity"),
            (("zero denominators", 2, 64), "the denominator is 0 in 2 of 64 entries", "clamp(min=1e-8)"),
            (("empty", 0, 0), "over no entry at all", "clamp(count, min=1)"),
            (("no target", 4, 4), "all 4 targets are ignored", "ignore_index"),
        ],
    )
    def test_what_about_the_arguments_is_told_with_its_own_cure(self, reason, says, cure):
        f = only(non_finite, breaking(event(operation="softmax", reason=reason)))
        assert says in f.message and cure in f.remedies[0].text and "normalise" not in f.remedies[0].text

    def test_what_the_loop_made_itself_is_told_at_its_line(self):
        f = only(non_finite, breaking(event("loop", "__truediv__", layer="", step=11), at=11))
        assert f.location == location(21) and "a division gives NaN at step 11" in f.message

    def test_without_a_look_at_the_operations_only_the_losses_can_tell(self):
        blind = (NotMeasured("numerics", "could not repeat the training step"),)
        assert no_verdict(non_finite, measurement(not_measured=blind)) == "not-measured"
        assert only(non_finite, breaking(not_measured=blind, at=3)).severity == "error"

    def test_later_in_the_probe_the_optimizer_must_be_the_user_s(self):
        assert severities(non_finite, breaking(event(step=7), at=7)) == ["error"]
        assert severities(non_finite, breaking(event(step=7), at=7, optimizer=optimizer(given=False))) == ["warning"]

    def test_made_up_inputs_may_lie_outside_the_model_s_domain(self):
        assert severities(non_finite, breaking(event(), data=data(given=False))) == ["warning"]

    def test_infinite_masks_that_never_reach_the_loss_are_healthy(self):
        assert findings(non_finite, measurement(non_finite=(event(operation="masked_fill", kind="inf"),))) == []

    @pytest.mark.parametrize("ended", ["raised", "non-finite"])
    def test_a_loss_that_rejects_its_labels_is_no_nan(self, ended):
        m = measurement(non_finite=(event(kind="inf"),), probe=run((math.nan,), ended=ended), losses=(loss_call(raised="IndexError"),))
        assert findings(non_finite, m) == []

    def test_a_step_that_raises_later_has_no_loss(self):
        assert findings(non_finite, measurement(probe=run((2.3, 2.2, math.nan), ended="raised"))) == []

    def test_weights_that_hold_nan_are_named(self):
        m = with_parameter(breaking(), "fc1.weight", steps=parameter_steps(norm=math.nan))
        f = only(non_finite, m)
        assert f.severity == "error" and "initial weights of fc1.weight" in f.message and f.location == location(10)

    def test_weights_that_become_nan_later_are_not_the_start(self):
        steps = tuple(replace(s, norm=math.nan) if s.step else s for s in parameter_steps())
        assert findings(non_finite, with_parameter(measurement(), "fc1.weight", steps=steps)) == []

    def test_a_loss_without_a_known_operation_is_found_too(self):
        f = only(non_finite, breaking(at=3))
        assert f.severity == "error" and "NaN at step 3" in f.message

    def test_what_the_backward_pass_broke_first_is_another_rule_s(self):
        assert findings(non_finite, breaking(event("backward", "sqrt"), event(step=1), at=1)) == []


class TestSingularDerivative:
    def test_a_finite_training_passes(self):
        assert findings(singular_derivative, measurement()) == []

    @pytest.mark.parametrize("operation", ["sqrt", "sqrt_", "pow", "__truediv__", "acos", "where", "linalg_eigh", "SqrtBackward0"])
    def test_a_known_singularity_is_an_error_with_its_cure(self, operation):
        f = only(singular_derivative, bad_gradients(event("backward", operation, input_min=0.0, input_max=2.0)))
        assert f.severity == "error" and f"derivative of {operation} in fc2" in f.message and "0 to 2" in f.message
        assert f.remedies[0].name == "guard-domain" and "small constant" not in f.remedies[0].text

    def test_a_gradient_that_reaches_no_parameter_is_advice(self):
        assert severities(singular_derivative, measurement(non_finite=(event("backward", "sqrt"),))) == ["info"]

    def test_a_forward_fault_before_it_is_another_rule_s(self):
        assert findings(singular_derivative, breaking(event(step=0), event("backward", "sqrt", step=1))) == []

    def test_an_overflow_that_a_lower_rate_avoids_is_the_rate_s(self):
        learned = run(name="rate x0.1", rate_factor=0.1)
        assert findings(singular_derivative, bad_gradients(event("backward", "mm", step=5), experiments=(learned,))) == []
        assert severities(singular_derivative, bad_gradients(event("backward", "mm", step=5), experiments=(stalled(rate_factor=0.1),))) == [
            "error"
        ]

    def test_an_assumed_optimizer_confirms_only_known_singularities(self):
        assumed = {"optimizer": optimizer(given=False)}
        assert severities(singular_derivative, bad_gradients(event("backward", "mm", step=5), **assumed)) == ["warning"]
        assert severities(singular_derivative, bad_gradients(event("backward", "sqrt", step=5), **assumed)) == ["error"]

    def test_made_up_inputs_give_a_warning(self):
        assert severities(singular_derivative, bad_gradients(event("backward", "sqrt"), data=data(given=False))) == ["warning"]
