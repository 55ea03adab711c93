"""OPT007 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.optimization.learning_rate_too_high import learning_rate_too_high
from gradcheck.rules.optimization.past_critical_rate import past_critical_rate
from gradcheck.types.checks import CriticalRate
from gradcheck.types.measurement import Measurement
from tests.literals import falling, measurement, optimizer, run, stalled
from tests.rules.verdicts import findings, no_verdict, only, severities

SOME = run(losses=falling(2.3, 1.0))


def at(*shares: float, **overrides: Any) -> Measurement:
    return measurement(**{"critical": CriticalRate(shares), "probe": SOME} | overrides)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [((0.02,), []), ((0.99,), []), ((1.4, 1.4), ["warning"]), ((11.0, 2.8), ["warning"]), ((3.9, 0.7), []), ((4.1, 0.7), ["warning"])],
)
def test_the_loss_rises_at_every_look(shares, expected):
    assert severities(past_critical_rate, at(*shares)) == expected


@pytest.mark.parametrize(("later", "end", "expected"), [(0.35, 0.4, "info"), (0.35, 0.5, "warning"), (1.1, 0.4, "warning")])
def test_a_first_step_that_costs_nothing_is_advice(later, end, expected):
    """An MLP that learns faster at this rate than at a quarter of the critical one."""
    assert only(past_critical_rate, at(5.7, later, probe=run(falling(2.3, end)))).severity == expected


def test_one_look_at_a_rate_beyond_it_is_not_enough():
    assert no_verdict(past_critical_rate, at(8.0)) == "not-measured"


def test_a_loss_whose_level_says_nothing_is_not_judged():
    assert no_verdict(past_critical_rate, measurement()) == "not-applicable"


@pytest.mark.parametrize(
    "overrides", [{"probe": run(losses=falling(2.3, 0.01))}, {"optimizer": optimizer(given=False)}], ids=["learned nearly all", "assumed"]
)
def test_advice_where_the_rate_does_no_harm_or_was_not_chosen(overrides):
    assert severities(past_critical_rate, at(4.0, 4.0, **overrides)) == ["info"]


def test_the_remedy_is_a_quarter_of_the_critical_rate():
    found = only(past_critical_rate, at(4.0, 8.0, optimizer=optimizer("SGD", lr=1.6)))
    assert "4 times the critical one" in found.message and "set the rate to 0.1" in found.remedies[0].text


@pytest.mark.parametrize(("share", "told"), [(0.5, False), (2.0, True)])
def test_it_is_evidence_for_a_rate_that_is_too_high(share, told):
    lower = run(name="rate x0.1", lr=1e-4, rate_factor=0.1)
    m = at(share, share, probe=stalled(), experiments=(lower,))
    evidence = [e.quantity for f in findings(learning_rate_too_high, m) for e in f.evidence]
    assert ("rate over the critical rate" in evidence) == told
