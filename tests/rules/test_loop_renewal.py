"""LOOP009 on literal measurements: just beyond each limit, and just within."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.loop.optimizer_recreated import optimizer_recreated
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import ONE_OPTIMIZER, Run
from tests.literals import location, loop, measurement
from tests.rules.verdicts import findings, no_verdict, only

FLAT = Run("probe", tuple([2.3] * 300))
FALLING = tuple(2.3 * 0.99**i for i in range(300))


def seen(**overrides: Any) -> Measurement:
    return measurement(loop=loop(**{"steps": 40, "made_site": location(12)} | overrides))


@pytest.mark.parametrize(
    ("facts", "fires"),
    [
        ({"made": 4, "life": 9, "forgets": True}, True),
        ({"made": 3, "life": 9, "forgets": True}, False),
        ({"made": 4, "life": 10, "forgets": True}, False),
        ({"made": 40, "life": 1, "forgets": False}, False),
        ({"schedules_made": 4, "schedule_life": 2}, True),
        ({"schedules_made": 3, "schedule_life": 2}, False),
        ({"schedules_made": 4, "schedule_life": 3}, False),
    ],
)
def test_limits(facts, fires):
    found = findings(optimizer_recreated, seen(**facts))
    assert bool(found) == fires
    assert all(f.severity == "warning" for f in found)


def test_it_is_an_error_where_the_probe_fails_and_one_optimizer_learns():
    facts = loop(steps=40, made=40, life=1, forgets=True, made_site=location(12))
    kept = Run(ONE_OPTIMIZER, FALLING)
    finding = only(optimizer_recreated, measurement(loop=facts, probe=FLAT, experiments=(kept,)))
    assert finding.severity == "error" and finding.confirmed and finding.location == location(12)
    assert "every step" in finding.message
    neither = Run(ONE_OPTIMIZER, FLAT.losses)
    learning = Run("probe", FALLING)
    for probe, experiment in ((FLAT, neither), (learning, kept)):
        m = measurement(loop=facts, probe=probe, experiments=(experiment,))
        assert only(optimizer_recreated, m).severity == "warning"


def test_without_a_loop_it_does_not_apply():
    assert no_verdict(optimizer_recreated, measurement()) == "not-applicable"
