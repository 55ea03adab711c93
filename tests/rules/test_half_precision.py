"""NUM003 to NUM005 on literal measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradcheck.rules.numerics.half_overflow import half_overflow
from gradcheck.rules.numerics.half_underflow import half_underflow
from gradcheck.rules.numerics.lost_updates import lost_updates
from gradcheck.types.checks import HalfGradients
from gradcheck.types.measurement import Measurement, NotMeasured
from gradcheck.types.training import NonFinite
from tests.literals import layer, location, measurement, parameter, parameter_steps, run, snapshots, stalled, stats
from tests.rules.verdicts import findings, no_verdict, only, severities


def reaching(largest: float, dtype: str = "float16", **overrides: Any) -> Measurement:
    """A model with a layer whose outputs reach this number."""
    outputs = snapshots(output=1.0)
    outputs = tuple(replace(s, output=stats(1.0, max=largest)) for s in outputs)
    return measurement(**{"layers": (layer("fc1", dtype=dtype, snapshots=outputs), layer("fc2", dtype=dtype, order=1))} | overrides)


class TestHalfOverflow:
    @pytest.mark.parametrize(
        ("largest", "expected"), [(0.9e4, []), (1.1e4, ["info"]), (2.9e4, ["info"]), (3.1e4, ["warning"]), (-3.1e4, ["warning"])]
    )
    def test_large_outputs(self, largest, expected):
        m = reaching(abs(largest))
        if largest < 0:
            negative = tuple(replace(s, output=stats(1.0, min=largest)) for s in snapshots())
            m = measurement(layers=(layer(dtype="float16", snapshots=negative),))
        assert severities(half_overflow, m) == expected

    def test_a_model_that_was_trained_before_gets_advice_only(self):
        assert severities(half_overflow, reaching(5e4, pretrained=True)) == ["info"]

    def test_an_infinite_output_is_an_error_at_its_layer(self):
        outputs = tuple(replace(s, output=stats(1.0, inf=3)) for s in snapshots())
        m = measurement(
            layers=(layer("fc1", dtype="float16"), layer("fc2", order=1, dtype="float16", snapshots=outputs, site=location(12)))
        )
        f = only(half_overflow, m)
        assert f.severity == "error" and f.layers == ("fc2",) and f.location == location(12) and "3 infinities" in f.message

    def test_an_infinite_operation_between_layers_is_an_error_too(self):
        event = NonFinite("forward", "pow", "block", location(40), 2, "inf", 0.0, 300.0, "float16")
        f = only(half_overflow, measurement(non_finite=(event,)))
        assert f.severity == "error" and "pow in block gives infinity in float16 at step 2" in f.message and f.location == location(40)

    @pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"dtype": "float32"}, {"direction": "backward"}, {"kind": "nan"}])
    def test_other_events_say_nothing_about_float16(self, change):
        event = NonFinite(
            **{"direction": "forward", "operation": "pow", "layer": "", "site": None, "step": 2, "kind": "inf", "dtype": "float16"} | change
        )
        assert findings(half_overflow, reaching(1.0, non_finite=(event,))) == []

    def test_weights_that_were_infinite_first_are_not_its_matter(self):
        outputs = tuple(replace(s, output=stats(1.0, inf=3 if s.step else 0)) for s in snapshots())
        broken = parameter(steps=parameter_steps(steps=(0,)) + parameter_steps(float("inf"), steps=(1,)))
        m = measurement(layers=(layer("fc1", dtype="float16", snapshots=outputs),), parameters=(broken,))
        assert findings(half_overflow, m) == []

    def test_not_applicable_without_float16(self):
        assert no_verdict(half_overflow, reaching(1e6, dtype="bfloat16")) == "not-applicable"


class TestHalfUnderflow:
    @pytest.mark.parametrize(("flushed", "expected"), [(0.049, []), (0.051, ["warning"])])
    def test_the_share_that_scaling_brings_back(self, flushed, expected):
        m = measurement(half=HalfGradients(32768.0, flushed, 2048, "fc1", flushed))
        assert severities(half_underflow, m) == expected

    def test_it_names_the_worst_layer_and_the_scale(self):
        f = only(half_underflow, measurement(half=HalfGradients(2048.0, 0.4, 2048, "fc1", 0.6)))
        assert "40 % of the gradient entries" in f.message and "60 % in fc1" in f.message and "2048" in f.remedies[0].text
        assert f.location == location(10)

    def test_no_verdict_without_float16(self):
        assert no_verdict(half_underflow, measurement()) == "not-applicable"
        failed = measurement(not_measured=(NotMeasured("precision", "the gradients of the scaled loss are not finite"),))
        assert no_verdict(half_underflow, failed) == "not-measured"


def stored(unchanged: float | None, dtype: str = "bfloat16", probe: Any = None, **overrides: Any) -> Measurement:
    weights = tuple(parameter(n, dtype=dtype, steps=parameter_steps(unchanged=unchanged)) for n in ("fc1.weight", "fc2.weight"))
    return measurement(parameters=weights, probe=probe or stalled(), **overrides)


class TestLostUpdates:
    @pytest.mark.parametrize(
        ("share", "stuck", "learning"),
        [(0.49, [], []), (0.51, ["warning"], ["info"]), (0.59, ["warning"], ["info"]), (0.61, ["warning"], ["warning"])],
    )
    def test_limits(self, share, stuck, learning):
        assert severities(lost_updates, stored(share)) == stuck
        assert severities(lost_updates, stored(share, probe=run())) == learning

    def test_large_parameters_count_more(self):
        large = parameter("fc1.weight", dtype="float16", count=9000, steps=parameter_steps(unchanged=0.2))
        small = parameter("fc2.weight", dtype="float16", count=1000, steps=parameter_steps(unchanged=1.0))
        assert findings(lost_updates, measurement(parameters=(large, small), probe=stalled())) == []

    def test_the_message_says_what_is_lost(self):
        f = only(lost_updates, stored(0.9))
        assert "90 % of the bfloat16 weights" in f.message and "2^-9" in f.message
        assert "2^-12" in only(lost_updates, stored(0.9, "float16")).message

    def test_float32_weights_lose_nothing(self):
        assert no_verdict(lost_updates, stored(None, "float32")) == "not-applicable"

    def test_no_step_was_measured(self):
        assert no_verdict(lost_updates, stored(None)) == "not-measured"
