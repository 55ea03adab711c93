"""INIT rules on literal measurements."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gradcheck.rules.initialization.signal_gain import signal_gain
from gradcheck.rules.initialization.weight_scale import weight_scale
from tests.literals import layer, location, measurement, parameter, run
from tests.rules.models import FAILS, with_gains
from tests.rules.verdicts import findings, no_verdict, only, severities


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

    @pytest.mark.parametrize(("rows", "expected"), [(64, 1), (127, 1), (129, 0), (512, 0)])
    def test_the_fan_out_may_be_what_fits(self, rows, expected):
        m = with_gains([0.5] * 20, backward=0.2, activation="relu", **FAILS)
        m = replace(m, parameters=tuple(replace(p, shape=(rows, 64)) for p in m.parameters))
        assert len(findings(signal_gain, m)) == expected

    def test_the_message_names_the_gain_that_comes_nearest(self):
        m = with_gains([0.5] * 20, backward=0.2, activation="relu", **FAILS)
        m = replace(m, parameters=tuple(replace(p, shape=(120, 64)) for p in m.parameters))
        assert "have gain 0.685 by their fan-out, 2.07 times off the 1.41 for relu" in only(signal_gain, m).message

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
