"""ACT007 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.activation.dormant_units import dormant_units
from gradcheck.types.layers import Dormancy, Layer
from gradcheck.types.measurement import Measurement
from tests.literals import falling, layer, location, measurement, run
from tests.rules.verdicts import no_verdict, only, severities

SOME = run(losses=falling(2.3, 1.0))
NEARLY_ALL = run(losses=falling(2.3, 0.01))


def gelu(dormant: int, at_start: int = 0, of: int = 64, samples: int = 256, batches: int = 4, **overrides: Any) -> Layer:
    values: dict[str, Any] = {"function": "gelu", "dormancy": Dormancy(of, dormant, at_start, samples, batches), "site": location(11)}
    return layer("act", "activation", **values | overrides)


def with_layer(activation: Layer, probe: Any = SOME) -> Measurement:
    return measurement(layers=(layer("fc1"), activation, layer("fc2", head=True)), probe=probe)


@pytest.mark.parametrize(("dormant", "expected"), [(31, []), (32, ["warning"])])
def test_half_of_the_units(dormant, expected):
    assert severities(dormant_units, with_layer(gelu(dormant))) == expected


@pytest.mark.parametrize(("at_start", "expected"), [(24, ["warning"]), (25, []), (40, [])])
def test_they_fell_asleep_in_training(at_start, expected):
    assert severities(dormant_units, with_layer(gelu(40, at_start))) == expected


def test_it_is_advice_where_the_loss_has_fallen_nearly_all_the_way():
    assert severities(dormant_units, with_layer(gelu(40), NEARLY_ALL)) == ["info"]


@pytest.mark.parametrize(("samples", "batches", "judged"), [(63, 4, False), (64, 1, False), (64, 2, True)])
def test_few_samples_say_nothing(samples, batches, judged):
    m = with_layer(gelu(40, samples=samples, batches=batches))
    assert severities(dormant_units, m) == ["warning"] if judged else no_verdict(dormant_units, m) == "not-measured"


@pytest.mark.parametrize("overrides", [{"gate": True}, {"dormancy": None}, {"of": 7, "dormant": 7}])
def test_gates_and_layers_of_few_units_are_not_looked_at(overrides):
    assert no_verdict(dormant_units, with_layer(gelu(**{"dormant": 40} | overrides))) == "not-applicable"


@pytest.mark.parametrize(("dead", "expected"), [(19, ["warning"]), (20, [])])
def test_what_dead_units_says_is_not_said_twice(dead, expected):
    relu = gelu(40, function="relu", units=64, dead_units=dead, dead_at_start=0, effective_samples=256, dead_batches=4)
    assert severities(dormant_units, with_layer(relu)) == expected


def test_the_message_names_the_units_and_the_start():
    found = only(dormant_units, with_layer(gelu(40, 3)))
    assert "40 of 64 units (62 %; limit 50 %) of act" in found.message and "3 did at the start" in found.message
    assert found.location == location(11)
