"""ACT rules on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.nouns.measurement import Layer, Measurement
from gradcheck.rules.activation import collapsed_representation, dead_units, deep_sigmoid, saturated_activation
from tests.literals import STEPS, falling, layer, location, measurement, optimizer, run, snapshots, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities

FAILS: dict[str, Any] = {"probe": stalled()}
SHORT: dict[str, Any] = {"probe": run((2.3, 2.3, 2.3))}


def between(*activations: Layer, **overrides: Any) -> Measurement:
    """fc1 -> the activations -> a head."""
    layers = (layer("fc1", order=0), *activations, layer("head", order=99, head=True))
    return measurement(**{"layers": layers} | overrides)


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


def sigmoids(
    count: int, function: str = "sigmoid", decades: float = 0.5, between_them: tuple[Layer, ...] = (), **overrides: Any
) -> Measurement:
    """A plain stack of linear layers, each followed by the function; the gradient loses `decades` per layer."""
    layers: list[Layer] = []
    for i in range(count):
        layers.append(layer(f"fcs.{i}", order=4 * i, activation=function, snapshots=snapshots(1.0, 10 ** (decades * i))))
        layers.append(layer(f"acts.{i}", "activation", function=function, order=4 * i + 1, site=location(15)))
        layers += [layer(f"{x.name}.{i}", x.kind, order=4 * i + 2, residual=x.residual) for x in between_them]
    return measurement(**{"layers": (*layers, layer("head", order=1000, head=True))} | overrides)


class TestDeepSigmoid:
    @pytest.mark.parametrize(("count", "expected"), [(3, []), (4, ["warning"])])
    def test_four_in_a_row(self, count, expected):
        assert severities(deep_sigmoid, sigmoids(count)) == expected

    @pytest.mark.parametrize("function", ["softplus", "hardsigmoid", "logsigmoid"])
    def test_its_kin_count_too(self, function):
        assert severities(deep_sigmoid, sigmoids(5, function)) == ["warning"]

    @pytest.mark.parametrize(
        ("rest", "decades", "expected"), [(FAILS, 0.1, "error"), (SHORT, 0.99, "warning"), (SHORT, 1.01, "error"), ({}, 1.01, "warning")]
    )
    def test_it_is_an_error_when_the_probe_fails_or_six_decades_are_lost(self, rest, decades, expected):
        assert severities(deep_sigmoid, sigmoids(6, decades=decades, **rest)) == [expected]

    def test_the_message_counts_and_names_them(self):
        f = only(deep_sigmoid, sigmoids(6, **FAILS))
        assert f.message.startswith(
            "6 sigmoid layers in a row without normalization (limit 4): acts.{0..5}; the gradient shrinks by 3 decades"
        )
        assert f.location == location(15) and f.remedies[0].name == "replace-activation"

    @pytest.mark.parametrize(("count", "expected"), [(3, []), (4, ["error"])])
    def test_one_sigmoid_applied_many_times_counts_as_often(self, count, expected):
        stack = sigmoids(count).layers
        one = layer(":sigmoid", "activation", function="sigmoid", order=1, calls=count)
        m = measurement(layers=(*(x for x in stack if x.kind != "activation"), one), **FAILS)
        assert severities(deep_sigmoid, m) == expected

    @pytest.mark.parametrize("cure", [layer("norm", "norm"), layer("sum", "other", residual=True)])
    def test_normalization_or_a_bypass_between_them_is_the_cure(self, cure):
        assert findings(deep_sigmoid, sigmoids(8, between_them=(cure,), **FAILS)) == []

    def test_gates_do_not_count(self):
        m = sigmoids(8, **FAILS)
        gates = tuple(layer(x.name, x.kind, function=x.function, order=x.order, gate=x.kind == "activation") for x in m.layers)
        assert no_verdict(deep_sigmoid, measurement(layers=gates, **FAILS)) == "not-applicable"

    def test_several_sigmoids_on_one_layer_are_not_a_stack(self):
        acts = tuple(layer(f"act.{i}", "activation", function="sigmoid", order=1 + i) for i in range(5))
        assert findings(deep_sigmoid, between(*acts, **FAILS)) == []


def similar(
    samples: float | None = None, tokens: float | None = None, later: float | None = None, first: float | None = 0.3, **overrides: Any
):
    """A stack whose first norm sees tokens of cosine `first` and whose head sees features of these cosines."""
    body = tuple(layer(f"fc.{i}", order=i) for i in range(overrides.pop("depth", 12)))

    def snaps(s: float | None, t: float | None) -> tuple:
        return tuple(
            x
            for step in STEPS
            for x in snapshots(
                steps=[step],
                sample_cosine=s if step < 3 or later is None or s is None else later,
                token_cosine=t if step < 3 or later is None or t is None else later,
            )
        )

    norm = layer("norm", "norm", order=-1, snapshots=snaps(None, first if tokens is not None else None))
    head = layer("head", order=999, head=True, site=location(40), snapshots=snaps(samples, tokens))
    return measurement(**{"layers": (norm, *body, head)} | overrides)


class TestCollapsedRepresentation:
    @pytest.mark.parametrize(("cosine", "expected"), [(0.99985, []), (0.99995, ["error"])])
    def test_samples_at_one_point(self, cosine, expected):
        assert severities(collapsed_representation, similar(cosine, **FAILS)) == expected

    def test_samples_are_a_warning_unless_the_probe_fails_and_advice_when_it_learns(self):
        f = only(collapsed_representation, similar(0.99999, **SHORT))
        assert f.severity == "warning" and "all samples reach head as one point: 1 - cosine is 1e-05 (limit 1e-04)" in f.message
        assert f.location == location(40)
        assert severities(collapsed_representation, similar(0.99999)) == ["info"]

    def test_class_tokens_that_mix_later_are_healthy(self):
        assert findings(collapsed_representation, similar(1.0, later=0.97, **FAILS)) == []

    def test_nothing_is_said_before_step_three(self):
        assert no_verdict(collapsed_representation, similar(1.0, measured_steps=(0, 1))) == "not-measured"

    @pytest.mark.parametrize(("cosine", "expected"), [(0.985, []), (0.995, ["info"]), (0.9985, ["info"]), (0.9995, ["error"])])
    def test_tokens(self, cosine, expected):
        assert severities(collapsed_representation, similar(tokens=cosine, **SHORT)) == expected

    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            ({"depth": 12}, "error"),
            ({"depth": 11}, "warning"),
            ({"depth": 11, **FAILS}, "error"),
            ({"first": 0.999}, "warning"),
            ({"first": None}, "warning"),
            ({"probe": run()}, "warning"),
            ({"optimizer": optimizer(given=False), "experiments": (run(falling(), "adam", batches=1),), **FAILS}, "warning"),
        ],
    )
    def test_equal_tokens_are_an_error_only_in_deep_models_that_make_them_so(self, overrides, expected):
        assert severities(collapsed_representation, similar(tokens=1.0, **SHORT | overrides)) == [expected]

    def test_tokens_come_first_and_one_collapse_is_one_finding(self):
        f = only(collapsed_representation, similar(1.0, 1.0, **SHORT))
        assert "mean cosine 1.0000 (limit 0.999)" in f.message
        assert f.remedies[0].name == "add-residual"

    def test_models_without_such_features_are_not_applicable(self):
        assert no_verdict(collapsed_representation, measurement()) == "not-applicable"
