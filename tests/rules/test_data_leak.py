"""DATA006 on literal measurements."""

from __future__ import annotations

import pytest

from gradcheck.rules.data.validation_leak import validation_leak
from gradcheck.types.loop import LoopLeak
from tests.literals import location, loop, measurement
from tests.rules.verdicts import no_verdict, severities


@pytest.mark.parametrize(
    ("shared", "twins", "whole", "expected"),
    [
        (11, 0.0, False, ["warning"]),
        (10, 0.0, False, []),
        (200, 0.0, False, ["warning"]),
        (201, 0.0, False, ["error"]),
        (1000, 0.0, True, ["warning"]),
        (1000, 0.0, False, ["warning"]),
        (999, 0.0, False, ["error"]),
        (300, 0.11, False, ["warning"]),
        (300, 0.3, False, []),
    ],
)
def test_limits(shared, twins, whole, expected):
    leak = LoopLeak(1000, shared, twins, whole, location(20))
    assert severities(validation_leak, measurement(loop=loop(leak=leak))) == expected


def test_a_few_rows_are_chance():
    assert severities(validation_leak, measurement(loop=loop(leak=LoopLeak(50, 3, 0.0)))) == []
    assert severities(validation_leak, measurement(loop=loop(leak=LoopLeak(50, 4, 0.0)))) == ["warning"]


def test_without_data_that_are_only_looked_at():
    assert no_verdict(validation_leak, measurement()) == "not-applicable"
    assert no_verdict(validation_leak, measurement(loop=loop())) == "not-applicable"
