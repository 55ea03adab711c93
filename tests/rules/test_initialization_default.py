"""INIT007 on literal measurements."""

from __future__ import annotations

import pytest

from gradcheck.analysis.depth import DEFAULT_GAIN
from gradcheck.rules.initialization.default_initialization import default_initialization
from tests.literals import location
from tests.rules.models import FAILS, with_gains
from tests.rules.verdicts import findings, no_verdict, only, severities


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
