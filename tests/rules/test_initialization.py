"""INIT rules on literal measurements."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradcheck.judge.signal import DEFAULT_GAIN
from gradcheck.nouns.measurement import Layer, Measurement
from gradcheck.rules.initialization import (
    default_initialization,
    degenerate_initialization,
    signal_gain,
    symmetric_units,
    weight_scale,
)
from tests.literals import layer, location, measurement, parameter, parameter_steps, run, snapshots, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities

FAILS: dict[str, Any] = {"probe": stalled()}
SHORT: dict[str, Any] = {"probe": run((2.3, 2.3, 2.3))}


def with_gains(gains: list[float], backward: float = 0.0, forward: float = 0.0, **overrides: Any) -> Measurement:
    """A plain stack of layers of fan-in 64 with these gains; trends in decades per layer, and a default head."""
    facts = {k: overrides.pop(k) for k in ("activation", "normalized", "residual", "kind", "fan_in", "groups") if k in overrides}
    kind = facts.pop("kind", "linear")
    layers = tuple(
        layer(f"layers.{i}", kind, order=i, site=location(12), snapshots=snapshots(10 ** (forward * i), 10 ** (backward * i)), **facts)
        for i in range(len(gains))
    )
    parameters = tuple(parameter(f"layers.{i}.weight", std=g / facts.get("fan_in", 64) ** 0.5) for i, g in enumerate(gains))
    head = layer("head", order=999, head=True, site=location(30))
    values: dict[str, Any] = {"layers": (*layers, head), "parameters": (*parameters, parameter("head.weight", shape=(10, 64)))}
    return measurement(**values | overrides)


class TestSignalGain:
    @pytest.mark.parametrize(
        ("activation", "gain", "expected"),
        [
            ("relu", 0.70, 1),
            ("relu", 0.72, 0),
            ("relu", 2.82, 0),
            ("relu", 2.84, 1),
            ("tanh", 0.53, 0),
            ("tanh", 0.52, 1),
            ("selu", 2.1, 1),
            (None, 1.9, 0),
            (None, 2.1, 1),
            ("unheard-of", 0.001, 0),
        ],
    )
    def test_twice_off_what_the_activation_needs(self, activation, gain, expected):
        m = with_gains([gain] * 20, backward=0.2, activation=activation, **FAILS)
        assert len(findings(signal_gain, m)) == expected

    def test_the_message_compares_with_the_table(self):
        f = only(signal_gain, with_gains([0.5] * 20, backward=0.2, activation="relu", **FAILS))
        assert "weights of layers.0 have gain 0.5, 2.83 times off the 1.41 for relu after it (limit 2 times)" in f.message
        assert "the same in layers.{0..19}" in f.message and f.location == location(12)
        assert f.severity == "warning" and f.remedies[0].name == "he-init" and "(now 0.5)" in f.remedies[0].text

    @pytest.mark.parametrize(
        ("trends", "rest", "expected"),
        [
            ({}, FAILS, 0),
            ({"forward": -0.11}, FAILS, 1),
            ({"forward": -0.09}, FAILS, 0),
            ({"forward": -0.11}, {}, 0),
            ({"backward": 0.13}, FAILS, 1),
            ({"backward": 0.12}, FAILS, 0),
            ({"backward": 0.19}, {}, 0),
            ({"backward": 0.21}, {}, 1),
        ],
    )
    def test_the_signal_has_to_show_it(self, trends, rest, expected):
        assert len(findings(signal_gain, with_gains([0.5] * 20, activation="relu", **trends, **rest))) == expected

    @pytest.mark.parametrize("exempt", [{"normalized": True}, {"residual": True}, {"groups": 64}])
    def test_normalized_residual_and_grouped_layers_are_exempt(self, exempt):
        assert findings(signal_gain, with_gains([0.5] * 20, backward=0.2, activation="relu", **exempt, **FAILS)) == []

    def test_trained_models_are_not_judged(self):
        assert no_verdict(signal_gain, with_gains([0.5] * 20, backward=0.2, pretrained=True)) == "not-applicable"


class TestWeightScale:
    @pytest.mark.parametrize(("gain", "expected"), [(0.0099, 1), (0.0101, 0), (9.9, 0), (10.1, 1)])
    def test_hidden_gains(self, gain, expected):
        assert len(findings(weight_scale, with_gains([gain] * 3))) == expected

    def test_the_message_gives_gain_spread_and_fan_in(self):
        f = only(weight_scale, with_gains([22.6] * 3))
        assert "gain 22.6 (above the limit 10), standard deviation 2.83 over 64 inputs" in f.message
        assert f.severity == "warning" and f.layers == ("layers.0", "layers.1", "layers.2")

    @pytest.mark.parametrize(("times", "expected"), [(29, 0), (31, 1), (1 / 29, 0), (1 / 31, 1)])
    def test_one_layer_off_its_peers(self, times, expected):
        found = findings(weight_scale, with_gains([0.32] * 5 + [0.32 * times]))
        assert len(found) == expected
        assert all(f.layers == ("layers.5",) and "31 times off the median" in f.message for f in found)

    @pytest.mark.parametrize("gains", [[0.4] * 3 + [0.011], [0.3] * 3 + [9.5]])
    def test_too_few_peers_compare_nothing(self, gains):
        assert findings(weight_scale, with_gains(gains)) == []

    def test_small_fan_in_excuses_a_quiet_layer(self):
        m = with_gains([0.6] * 6)
        m = replace(m, layers=(replace(m.layers[0], fan_in=1), *m.layers[1:]))
        assert findings(weight_scale, m) == []

    @pytest.mark.parametrize("exempt", [{"normalized": True}, {"groups": 8}, {"kind": "recurrent"}])
    def test_normalized_grouped_and_recurrent_layers_are_exempt(self, exempt):
        assert no_verdict(weight_scale, with_gains([100.0] * 3, **exempt)) == "not-applicable"

    def test_the_quiet_end_of_a_residual_branch_is_healthy(self):
        assert findings(weight_scale, with_gains([1e-4] * 3, residual=True)) == []
        assert len(findings(weight_scale, with_gains([100.0] * 3, residual=True))) == 1

    def test_zero_constant_frozen_and_learned_weights_are_exempt(self):
        m = with_gains([100.0])
        for exempt in ({"trainable": False}, {"mean": 0.0, "std": 0.0}, {"mean": 0.1, "std": 1.5e-8}):
            harmless = replace(m, parameters=(replace(m.parameters[0], **exempt), *m.parameters[1:]))
            assert no_verdict(weight_scale, harmless) == "not-applicable"
        assert no_verdict(weight_scale, replace(m, pretrained=True)) == "not-applicable"

    @pytest.mark.parametrize(("gain", "loss", "expected"), [(9.9, 30.0, 0), (10.1, 6.8, 0), (10.1, 7.0, 1)])
    def test_a_loud_head_needs_a_high_initial_loss(self, gain, loss, expected):
        m = with_gains([1.0] * 2, probe=run((loss, 2.0, 1.5)), chance=math.log(10))
        m = replace(m, parameters=(*m.parameters[:-1], replace(m.parameters[-1], std=gain / 8)))
        found = findings(weight_scale, m)
        assert len(found) == expected and all(f.remedies[0].name == "head-scaling" and f.location == location(30) for f in found)

    @pytest.mark.parametrize(("std", "expected"), [(0.9e-4, ["info"]), (1.1e-4, []), (9.9, []), (10.1, ["info"])])
    def test_embeddings_are_advice(self, std, expected):
        embedding = layer("embedding", "embedding", parameters=("embedding.weight",))
        m = measurement(layers=(embedding,), parameters=(parameter("embedding.weight", std=std),))
        assert severities(weight_scale, m) == expected


CONSTANT: dict[str, Any] = {"mean": 0.1, "std": 1.5e-8}
ZERO: dict[str, Any] = {"mean": 0.0, "std": 0.0}


def weighing(steps: tuple, **facts: Any) -> Measurement:
    """fc1 (with this weight) -> relu -> fc2 -> relu -> head."""
    layers = (
        layer("fc1", order=0, site=location(10)),
        layer("act1", "activation", order=1),
        layer("fc2", order=2, site=location(12)),
        layer("act2", "activation", order=3),
        layer("head", order=4, head=True),
    )
    weights = (parameter("fc1.weight", **{"steps": steps} | facts), parameter("fc2.weight"), parameter("head.weight"))
    return measurement(layers=layers, parameters=weights)


class TestDegenerateInitialization:
    def test_random_weights_pass(self):
        assert findings(degenerate_initialization, weighing(parameter_steps())) == []

    @pytest.mark.parametrize(("facts", "words"), [(ZERO, "are zero, and after 99 steps still equal"), (CONSTANT, "are equal to 0.1")])
    def test_a_weight_that_stays_constant_is_an_error(self, facts, words):
        f = only(degenerate_initialization, weighing(parameter_steps(0.0, 0.0, constant=True, duplicate_units=1.0), **facts))
        assert f.severity == "error" and words in f.message and "all 4096 entries of fc1.weight" in f.message
        assert f.location == location(10) and f.remedies[0].name == "break-symmetry"

    def test_zero_initialised_branches_open_and_are_silent(self):
        opened = (*parameter_steps(0.0, 0.0, (0,), constant=True, duplicate_units=1.0), *parameter_steps(0.1, 0.1, (1, 3, 10)))
        assert findings(degenerate_initialization, weighing(opened, **ZERO)) == []

    @pytest.mark.parametrize(("twins", "expected"), [(0.98, 0), (0.995, 1)])
    def test_a_constant_whose_units_stay_equal_is_one_although_its_entries_part(self, twins, expected):
        steps = (*parameter_steps(5.0, 0.1, (0,), constant=True), *parameter_steps(5.0, 0.1, (1, 3, 10), duplicate_units=twins))
        assert len(findings(degenerate_initialization, weighing(steps, **CONSTANT))) == expected

    def test_zeros_whose_units_are_equal_but_not_constant_any_more_are_left_to_symmetric_units(self):
        steps = (*parameter_steps(0.0, 0.1, (0,), constant=True), *parameter_steps(5.0, 0.1, (1, 3, 10), duplicate_units=1.0))
        assert findings(degenerate_initialization, weighing(steps, **ZERO)) == []

    @pytest.mark.parametrize("exempt", [{"trainable": False}, {"groups": 0}, {"used": False}, {"shape": (64, 1)}, {"shape": (1, 1)}])
    def test_parameters_that_nobody_trains_are_exempt(self, exempt):
        steps = parameter_steps(0.0, 0.0, constant=True)
        assert findings(degenerate_initialization, weighing(steps, **ZERO | exempt)) == []

    def test_the_head_is_exempt(self):
        m = weighing(parameter_steps())
        zero_head = parameter("head.weight", steps=parameter_steps(0.0, 0.0, constant=True), **ZERO)
        assert findings(degenerate_initialization, replace(m, parameters=(*m.parameters[:2], zero_head))) == []

    def test_nothing_is_said_when_the_optimizer_moves_nothing(self):
        steps = parameter_steps(0.0, 0.0, constant=True, update_ratio=0.0)
        m = weighing(steps, **ZERO)
        assert findings(degenerate_initialization, replace(m, parameters=m.parameters[:1])) == []

    def test_it_is_not_judged_before_step_three(self):
        m = weighing(parameter_steps(0.0, 0.0, (0, 1), constant=True), **ZERO)
        assert no_verdict(degenerate_initialization, replace(m, parameters=m.parameters[:1])) == "not-measured"

    @pytest.mark.parametrize(("mean", "dead", "expected"), [(-0.9, 64, 0), (-1.1, 64, 1), (-5.0, 63, 0)])
    def test_biases_that_shut_a_layer(self, mean, dead, expected):
        m = shut(mean, dead)
        assert severities(degenerate_initialization, replace(m, **SHORT)) == ["warning"] * expected
        assert severities(degenerate_initialization, replace(m, **FAILS)) == ["error"] * expected

    def test_a_shut_layer_is_named_with_its_bias(self):
        f = only(degenerate_initialization, replace(shut(-10.0, 64), **FAILS))
        assert "biases of fc1 average -10 (limit -1), and none of the 64 units of act1 is active" in f.message
        assert f.layers == ("fc1", "act1") and f.location == location(10)

    @pytest.mark.parametrize(("samples", "expected"), [(63, 0), (64, 1)])
    def test_a_layer_is_called_shut_on_enough_samples(self, samples, expected):
        assert len(findings(degenerate_initialization, shut(-10.0, 64, effective_samples=samples))) == expected


def shut(mean: float, dead: int, **overrides: Any) -> Measurement:
    m = weighing(parameter_steps())
    act: Layer = replace(
        m.layers[1], **{"units": 64, "dead_units": dead, "dead_at_start": dead, "effective_samples": 128, "dead_batches": 2} | overrides
    )
    return replace(m, layers=(m.layers[0], act, *m.layers[2:]), parameters=(*m.parameters, parameter("fc1.bias", mean=mean)))


class TestSymmetricUnits:
    @pytest.mark.parametrize(("twins", "expected"), [(0.5, []), (0.52, ["error"])])
    def test_more_than_half_of_the_units(self, twins, expected):
        assert severities(symmetric_units, weighing(parameter_steps(duplicate_units=twins))) == expected

    def test_the_message_counts_units(self):
        f = only(symmetric_units, weighing(parameter_steps(duplicate_units=1.0)))
        assert "100 % of the 64 units of fc1 equal another unit (limit 50 %), in weights and gradients, still after 99 steps" in f.message
        assert f.location == location(10)

    def test_units_that_part_are_healthy(self):
        steps = (*parameter_steps(steps=(0,), duplicate_units=1.0), *parameter_steps(steps=(1, 3, 10), duplicate_units=0.0))
        assert findings(symmetric_units, weighing(steps)) == []

    def test_constant_weights_are_another_rule(self):
        assert findings(symmetric_units, weighing(parameter_steps(duplicate_units=1.0), **CONSTANT)) == []

    def test_grouped_layers_and_heads_are_exempt(self):
        m = weighing(parameter_steps(duplicate_units=1.0))
        assert no_verdict(symmetric_units, replace(m, layers=(replace(m.layers[0], groups=64), *m.layers[1:]))) == "not-applicable"
        assert no_verdict(symmetric_units, replace(m, layers=(replace(m.layers[0], head=True), *m.layers[1:]))) == "not-applicable"

    def test_it_is_not_judged_before_step_three(self):
        assert no_verdict(symmetric_units, weighing(parameter_steps(steps=(0, 1), duplicate_units=1.0))) == "not-applicable"


class TestDefaultInitialization:
    @pytest.mark.parametrize(
        ("count", "off", "slope", "expected"),
        [
            (8, 1.0, 0.4, 1),
            (7, 1.0, 0.4, 0),
            (8, 1.029, 0.4, 1),
            (8, 1.031, 0.4, 0),
            (8, 1.0, 0.19, 1),
            (8, 1.0, 0.18, 0),
            (30, 1.0, 0.074, 0),
            (30, 1.0, 0.076, 1),
        ],
    )
    def test_deep_plain_default_and_steep(self, count, off, slope, expected):
        m = with_gains([DEFAULT_GAIN * off] * count, backward=slope, activation="relu", **FAILS)
        if count < 8:
            assert no_verdict(default_initialization, m) == "not-applicable"
        else:
            assert severities(default_initialization, m) == ["warning"] * expected

    @pytest.mark.parametrize(("count", "expected"), [(7, 1), (6, 0)])
    def test_seven_tenths_of_the_layers(self, count, expected):
        m = with_gains([DEFAULT_GAIN] * count + [1.4] * (10 - count), backward=0.4, **FAILS)
        assert len(findings(default_initialization, m)) == expected

    def test_the_message(self):
        f = only(default_initialization, with_gains([DEFAULT_GAIN] * 12, backward=0.4, activation="relu", **FAILS))
        assert (
            "12 layers without normalization or bypass have torch's default initialisation, gain 0.577 where relu wants 1.41" in f.message
        )
        assert f.location == location(12) and f.remedies[0].name == "he-init"

    def test_advice_when_the_probe_learns_and_the_trend_is_mild(self):
        assert severities(default_initialization, with_gains([DEFAULT_GAIN] * 9, backward=0.4)) == ["info"]
        assert severities(default_initialization, with_gains([DEFAULT_GAIN] * 11, backward=0.4)) == ["warning"]

    @pytest.mark.parametrize("exempt", [{"normalized": True}, {"residual": True}, {"pretrained": True}])
    def test_normalized_residual_and_trained_models_are_not_applicable(self, exempt):
        assert no_verdict(default_initialization, with_gains([DEFAULT_GAIN] * 12, backward=0.4, **exempt)) == "not-applicable"
