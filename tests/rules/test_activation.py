"""ACT rules on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.activation.dead_units import dead_units
from gradcheck.rules.activation.saturated_activation import saturated_activation
from gradcheck.types.layers import Layer
from tests.literals import STEPS, layer, location, measurement, snapshots
from tests.rules.models import FAILS, SHORT, between
from tests.rules.verdicts import findings, no_verdict, only, severities


def tanh(start: float, end: float, name: str = "act", **overrides: Any) -> Layer:
    shares = tuple(s for t in STEPS for s in snapshots(steps=[t], saturated=start if t == 0 else end))
    return layer(name, "activation", **{"order": 1, "function": "tanh", "site": location(11), "snapshots": shares} | overrides)


class TestSaturatedActivation:
    @pytest.mark.parametrize(("share", "expected"), [(0.49, []), (0.51, ["warning"])])
    def test_half_of_the_outputs_is_a_warning(self, share, expected):
        assert severities(saturated_activation, between(tanh(share, share), **SHORT)) == expected

    @pytest.mark.parametrize(("share", "expected"), [(0.89, "warning"), (0.91, "error")])
    def test_nine_tenths_is_an_error_when_the_probe_fails(self, share, expected):
        f = only(saturated_activation, between(tanh(share, share), **FAILS))
        assert f.severity == expected

    def test_the_message_gives_share_place_and_limit(self):
        f = only(saturated_activation, between(tanh(0.8, 0.7), **SHORT))
        assert f.message.startswith("70 % of the outputs of act (tanh) are saturated (limit 50 %)") and f.location == location(11)

    @pytest.mark.parametrize(("start", "end"), [(0.95, 0.2), (0.2, 0.95)])
    def test_it_has_to_last(self, start, end):
        assert findings(saturated_activation, between(tanh(start, end), **FAILS)) == []

    @pytest.mark.parametrize("exempt", [{"gate": True}, {"head": True}, {"order": 100}, {"function": "relu"}])
    def test_gates_and_outputs_are_exempt(self, exempt):
        assert no_verdict(saturated_activation, between(tanh(1.0, 1.0, **exempt), **FAILS)) == "not-applicable"

    def test_the_output_of_one_head_among_several_is_exempt(self):
        layers = (layer("fc", order=0), layer("value", order=1, head=True), tanh(1.0, 1.0, order=2), layer("policy", order=3, head=True))
        assert no_verdict(saturated_activation, measurement(layers=layers)) == "not-applicable"

    def test_what_was_learned_before_is_not_judged(self):
        assert no_verdict(saturated_activation, between(tanh(1.0, 1.0), pretrained=True)) == "not-applicable"

    def test_one_expression_is_one_finding(self):
        same = between(tanh(0.7, 0.7, "a.0"), tanh(0.9, 0.8, "a.1", order=2), **SHORT)
        assert only(saturated_activation, same).layers == ("a.0", "a.1")
        apart = between(tanh(0.7, 0.7, "a.0"), tanh(0.9, 0.8, "a.1", order=2, site=location(12)), **SHORT)
        assert len(findings(saturated_activation, apart)) == 2


def relu(dead: int, of: int = 64, name: str = "act", **overrides: Any) -> Layer:
    values: dict[str, Any] = {
        "order": 1,
        "units": of,
        "dead_units": dead,
        "dead_at_start": dead,
        "effective_samples": 256,
        "dead_batches": 2,
    }
    return layer(name, "activation", **values | {"site": location(11)} | overrides)


class TestDeadUnits:
    @pytest.mark.parametrize(("dead", "expected"), [(31, []), (32, ["warning"])])
    def test_half_of_the_units_is_a_warning(self, dead, expected):
        assert severities(dead_units, between(relu(dead), **FAILS)) == expected

    @pytest.mark.parametrize(
        ("dead", "rest", "expected"), [(51, FAILS, "warning"), (52, FAILS, "error"), (52, {}, "warning"), (63, SHORT, "warning")]
    )
    def test_four_fifths_is_an_error_when_the_probe_fails(self, dead, rest, expected):
        assert severities(dead_units, between(relu(dead), **rest)) == [expected]

    @pytest.mark.parametrize(("dead", "expected"), [(51, "info"), (52, "warning")])
    def test_a_model_that_learns_is_only_advised_below_four_fifths(self, dead, expected):
        assert severities(dead_units, between(relu(dead))) == [expected]

    def test_a_whole_layer_is_an_error_unless_something_bypasses_it_or_the_model_learns(self):
        f = only(dead_units, between(relu(64), **SHORT))
        assert f.severity == "error" and f.confirmed == "by the measured value alone"
        assert severities(dead_units, between(relu(64, residual=True), **SHORT)) == ["warning"]
        assert severities(dead_units, between(relu(64))) == ["warning"]

    @pytest.mark.parametrize(
        ("samples", "batches", "enough"), [(255, 2, False), (256, 2, True), (256, 1, False), (1023, 1, False), (1024, 1, True)]
    )
    def test_few_samples_say_nothing(self, samples, batches, enough):
        m = between(relu(40, effective_samples=samples, dead_batches=batches), **FAILS)
        assert len(findings(dead_units, m)) == 1 if enough else no_verdict(dead_units, m) == "not-measured"

    @pytest.mark.parametrize(("dead", "samples", "enough"), [(60, 64, True), (60, 63, False), (51, 255, False)])
    def test_fewer_samples_show_that_nearly_all_are_dead(self, dead, samples, enough):
        m = between(relu(dead, effective_samples=samples), **FAILS)
        assert len(findings(dead_units, m)) == 1 if enough else no_verdict(dead_units, m) == "not-measured"

    def test_the_message_tells_initialisation_from_learning_rate(self):
        born = only(dead_units, between(relu(60), **FAILS))
        assert (
            "60 of 64 units (94 %; limit 80 %) of act are never active over 256 samples x positions, all of them from the start"
            in born.message
        )
        assert born.remedies[0].name == "he-init" and born.location == location(11)
        killed = only(dead_units, between(relu(60, dead_at_start=0), **FAILS))
        assert "none of them at the start: the probe training killed them" in killed.message
        assert killed.remedies[0].name == "lower-learning-rate" and "from 0.001 to 1e-04" in killed.remedies[0].text

    def test_gates_and_what_feeds_them_are_exempt(self):
        assert no_verdict(dead_units, between(relu(64, gate=True), **FAILS)) == "not-applicable"
        squeeze = (
            relu(8, 8, order=1),
            layer("expand", "conv", order=2, output_shape=(32, 64, 1, 1)),
            layer("sigmoid", "activation", function="sigmoid", order=3, gate=True),
        )
        assert no_verdict(dead_units, between(*squeeze, **FAILS)) == "not-applicable"

    def test_models_without_counted_units_are_not_applicable(self):
        assert no_verdict(dead_units, between(layer("act", "activation", function="gelu", order=1))) == "not-applicable"
