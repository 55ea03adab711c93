"""GRAPH rules about the model as a function, on literal measurements."""

from __future__ import annotations

import math
from typing import Any

import pytest

from gradcheck.rules.graph.input_ignored import input_ignored
from gradcheck.rules.graph.samples_mixed import samples_mixed
from gradcheck.rules.graph.wrong_gradient import wrong_gradient
from gradcheck.types.checks import Dependence, Derivatives
from gradcheck.types.losses import Scramble
from gradcheck.types.measurement import Measurement
from tests.literals import data, location, measurement, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities


def derived(error: float = 0.3, **overrides: Any) -> Measurement:
    """A model whose backward is off by this share; overrides go into Derivatives, or with `measured` into the Measurement."""
    more = overrides.pop("measured", {})
    return measurement(derivatives=Derivatives(error, 3, **overrides), **more)


def custom(error: float = 0.3, own: float = 0.5, **overrides: Any) -> Measurement:
    values: dict[str, Any] = {"function": "Exp", "function_error": own, "layer": "act", "site": location(33)}
    return derived(error, **values | overrides)


def depends(**overrides: Any) -> Measurement:
    more = overrides.pop("measured", {})
    values: dict[str, Any] = {"mixed": 0.0, "input_effect": 0.8}
    return measurement(dependence=Dependence(**values | overrides), **more)


class TestWrongGradient:
    def test_a_correct_gradient_passes(self):
        assert findings(wrong_gradient, derived(4e-8)) == []

    def test_nothing_is_said_of_what_was_not_measured(self):
        assert no_verdict(wrong_gradient, measurement()) == "not-measured"
        assert no_verdict(wrong_gradient, derived(math.nan, deterministic=False)) == "not-measured"

    @pytest.mark.parametrize(
        ("error", "own", "expected"),
        [(0.9e-5, 0.5, []), (1.1e-5, 0.5, ["error"]), (5e-4, 0.9e-3, []), (5e-4, 1.1e-3, ["error"]), (1.1e-3, 0.0, ["error"])],
    )
    def test_a_function_is_at_fault_beyond_the_limit(self, error, own, expected):
        assert severities(wrong_gradient, custom(error, own)) == expected

    def test_the_finding_names_function_layer_line_and_what_gradcheck_says(self):
        f = only(wrong_gradient, custom(gradcheck="Jacobian mismatch for output 0"))
        assert f.message.startswith("backward of Exp in act is not the derivative of its forward: off by 50 % (limit 0.1 %)")
        assert f.location == location(33) and f.layers == ("act",) and f.confirmed == "by the measured value alone"
        assert "Exp.backward" in f.remedies[0].text and "Jacobian mismatch" in f.remedies[0].text

    def test_a_function_of_an_installed_package_is_advice(self):
        assert severities(wrong_gradient, custom(site=location(33, detail=location(9, "package.py")))) == ["info"]

    @pytest.mark.parametrize("intended", ["straight-through", "gradient-reversal", "gradient-scaling", "stop-gradient"])
    def test_what_is_meant_is_advice(self, intended):
        f = only(wrong_gradient, custom(intended=intended))
        assert f.severity == "info" and "looks like" in f.message

    @pytest.mark.parametrize(
        ("factor", "probe", "expected"),
        [(0.5, None, "info"), (0.5, stalled(), "info"), (-1.0, None, "warning"), (0.0, None, "warning"), (-1.0, stalled(), "error")],
    )
    def test_a_hook_that_takes_or_turns_the_gradient(self, factor, probe, expected):
        m = derived(0.4, hook="tensor", hook_factor=factor, layer="fc1", measured={} if probe is None else {"probe": probe})
        f = only(wrong_gradient, m)
        assert f.severity == expected and "a tensor hook in fc1" in f.message

    @pytest.mark.parametrize(("error", "expected"), [(0.9e-3, []), (1.1e-3, ["info"])])
    def test_a_mismatch_without_a_cause_is_advice(self, error, expected):
        assert severities(wrong_gradient, derived(error)) == expected


class TestSamplesMixed:
    @pytest.mark.parametrize(("share", "expected"), [(0.0, []), (0.9e-3, []), (1.1e-3, ["error"])])
    def test_samples_have_to_be_independent(self, share, expected):
        assert severities(samples_mixed, depends(mixed=share)) == expected

    def test_the_finding_names_operation_and_layer(self):
        f = only(samples_mixed, depends(mixed=0.4, operation="lstm", layer="rnn", site=location(12), ordered=True))
        assert f.message.startswith("lstm in rnn mixes the samples of a batch") and "by 40 % as much (limit 0.1 %)" in f.message
        assert f.location == location(12) and "create rnn with batch_first=True" in f.remedies[0].text
        assert f.confirmed == "by the measured value alone"

    @pytest.mark.parametrize(
        ("operation", "cure"),
        [("softmax", "dim=-1"), ("reshape", "permute back"), ("__getitem__", "leave the batch axis alone in an index")],
    )
    def test_the_cure_fits_the_operation(self, operation, cure):
        assert cure in only(samples_mixed, depends(mixed=0.4, operation=operation)).remedies[0].text

    def test_an_unknown_operation_is_no_obstacle(self):
        assert only(samples_mixed, depends(mixed=0.4)).message.startswith("the model mixes")

    @pytest.mark.parametrize("meant", ["statistics", "relation", "routing"])
    def test_what_is_usually_meant_is_advice(self, meant):
        assert severities(samples_mixed, depends(mixed=0.4, operation="mean", meant=meant)) == ["info"]

    def test_where_the_axis_of_the_samples_is_not_certain_it_is_advice(self):
        f = only(samples_mixed, depends(mixed=0.4, operation="lstm", certain=False))
        assert f.severity == "info" and f.message.startswith("if the samples are on the first axis, ")
        assert severities(samples_mixed, depends(mixed=0.4, measured={"data": data(given=False)})) == ["info"]

    def test_nothing_is_said_of_what_was_not_measured(self):
        assert no_verdict(samples_mixed, measurement()) == "not-measured"
        assert no_verdict(samples_mixed, depends(mixed=None)) == "not-measured"


class TestInputIgnored:
    @pytest.mark.parametrize(("effect", "expected"), [(0.9e-6, ["warning"]), (1.1e-6, []), (0.8, [])])
    def test_the_output_has_to_follow_the_input(self, effect, expected):
        assert severities(input_ignored, depends(input_effect=effect, measured={"probe": stalled()})) == expected

    @pytest.mark.parametrize(
        ("effect", "shuffled", "expected"), [(9e-5, 2.019, ["warning"]), (9e-5, 2.021, []), (1.1e-4, 2.019, []), (9e-5, 1.9, ["warning"])]
    )
    def test_a_small_effect_counts_when_shuffled_inputs_do_as_well(self, effect, shuffled, expected):
        m = depends(input_effect=effect, trained_loss=2.0, shuffled_loss=shuffled, standard_error=0.01)
        assert severities(input_ignored, m) == expected

    def test_a_small_effect_says_nothing_when_nothing_was_learned(self):
        m = depends(input_effect=9e-5, trained_loss=2.0, shuffled_loss=2.0, standard_error=0.01, measured={"probe": stalled()})
        assert findings(input_ignored, m) == []

    def test_a_small_effect_says_nothing_without_the_losses(self):
        assert findings(input_ignored, depends(input_effect=9e-4)) == []

    def test_an_order_that_makes_no_difference(self):
        f = only(input_ignored, depends(input_effect=0.5, unordered=True, layer="position", site=location(20)))
        assert f.severity == "warning" and f.location == location(20) and "order of a sequence" in f.message
        m = depends(input_effect=9e-4, trained_loss=math.nan, shuffled_loss=2.0, standard_error=0.01)
        assert findings(input_ignored, m) == []

    def test_one_of_several_inputs_that_nothing_uses(self):
        f = only(input_ignored, depends(input_effect=0.5, lost=True, operation="reshape", site=location(20)))
        assert f.severity == "warning" and f.location == location(20) and "the result of reshape, is used by nothing" in f.message

    def test_a_result_that_is_thrown_away(self):
        f = only(input_ignored, depends(input_effect=0.5, dropped=True, operation="masked_fill", site=location(20)))
        assert f.severity == "warning" and "masked_fill returns a new tensor" in f.message

    def test_the_message_compares_the_losses(self):
        f = only(input_ignored, depends(input_effect=0.0, trained_loss=2.25, shuffled_loss=2.25, standard_error=0.0))
        assert "the loss is 2.25, and 2.25 with the inputs shuffled" in f.message

    def test_nothing_is_said_of_what_was_not_measured(self):
        assert no_verdict(input_ignored, measurement()) == "not-measured"
        assert no_verdict(input_ignored, depends(input_effect=None)) == "not-measured"


@pytest.mark.parametrize(("certain", "severity"), [(True, "error"), (False, "info")])
def test_what_a_place_in_the_batch_adds(certain, severity):
    f = only(samples_mixed, depends(placed=True, operation="add", layer="position", site=location(20), certain=certain))
    assert f.severity == severity and f.location == location(20) and "copies of one sample" in f.message


def test_an_axis_that_a_view_keeps_in_size_only():
    scramble = Scramble("view", location(25), (32, 8, 8, 24), (32, 24, 64), 3)
    f = only(samples_mixed, depends(measured={"scrambles": (scramble,)}))
    assert f.severity == "warning" and f.location == location(25) and "permute" in f.message
    assert only(samples_mixed, depends(mixed=0.5, site=location(9), measured={"scrambles": (scramble,)})).location == location(9)
