"""LOSS007 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.loss.adversary_saturated import adversary_saturated
from gradcheck.types.loop import LoopAdversary
from gradcheck.types.measurement import Measurement
from tests.literals import location, loop, measurement
from tests.rules.verdicts import findings, no_verdict, only


def opposed(**overrides: Any) -> Measurement:
    values = {"loss_start": 1.0, "loss_end": 0.01, "own_start": -0.4, "own_end": -0.01, "gradient_start": 1.0, "gradient_end": 0.04}
    found = LoopAdversary("optD", **values | overrides, steps=200)
    return measurement(loop=loop(adversary=found, backward_site=location(33)))


@pytest.mark.parametrize(
    ("overrides", "fires"),
    [
        ({}, True),
        ({"loss_end": 0.0101}, False),
        ({"gradient_end": 0.0401}, False),
        ({"own_end": -0.5}, False),
        ({"loss_end": -0.5}, False),
        ({"loss_start": -1.0}, False),
    ],
)
def test_limits(overrides, fires):
    assert bool(findings(adversary_saturated, opposed(**overrides))) == fires


def test_it_names_the_winner_at_the_losers_place():
    f = only(adversary_saturated, opposed())
    assert "optD" in f.message and "from -0.4 to -0.01" in f.message and f.location == location(33)


def test_without_opposed_trainings():
    assert no_verdict(adversary_saturated, measurement()) == "not-applicable"
    assert no_verdict(adversary_saturated, measurement(loop=loop())) == "not-applicable"
