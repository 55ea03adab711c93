"""LOSS008 and LOSS009 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.loss.inert_loss_term import inert_loss_term
from gradcheck.rules.loss.no_learning_signal import no_learning_signal
from gradcheck.types.checks import IdleTerm
from gradcheck.types.loop import SilentTerm
from gradcheck.types.measurement import Measurement, NotMeasured
from tests.literals import layer, location, loop, measurement
from tests.rules.verdicts import findings, no_verdict, only, severities


def idle(kind: str, **overrides: Any) -> Measurement:
    values: dict[str, Any] = {"operation": "detach", "site": location(30), "value": 0.1, "loss": 2.0}
    return measurement(idle_terms=(IdleTerm(kind, **values | overrides),))


def silent(kind: str, passes: int = 32, low: float = 0.0, high: float = 0.7) -> Measurement:
    return measurement(loop=loop(silent=(SilentTerm(kind, "sub", location(40), passes, low, high),)))


@pytest.mark.parametrize(("kind", "words"), [("cut", "detach()"), ("no-weights", "no trained weight"), ("zero", "exactly 0")])
def test_a_term_that_trains_nothing(kind, words):
    f = only(inert_loss_term, idle(kind))
    assert f.severity == "warning" and words in f.message and "5 % of the loss" in f.message and f.location == location(30)


def test_a_term_larger_than_the_loss_is_no_share_of_it():
    assert "of the loss" not in only(inert_loss_term, idle("cut", value=300.0)).message.replace("a term of the loss", "")


@pytest.mark.parametrize(("function", "told"), [("relu", True), ("tanh", False)])
def test_a_derivative_that_is_zero(function, told):
    m = idle("derivative", operation="grad", order=2)
    m = measurement(idle_terms=m.idle_terms, layers=(layer("act", kind="activation", function=function),))
    assert ("piecewise linear, by relu" in only(inert_loss_term, m).message) == told


def test_a_loss_that_the_loop_computes_from_no_weight():
    assert "32 of 32" in only(inert_loss_term, silent("no-weights")).message
    assert findings(no_learning_signal, silent("no-weights")) == []


def test_healthy_terms():
    assert findings(inert_loss_term, measurement()) == [] and findings(no_learning_signal, measurement()) == []
    assert findings(inert_loss_term, idle("equals")) == []


@pytest.mark.parametrize(
    ("passes", "high", "expected"), [(16, 0.7, ["error"]), (15, 0.7, ["warning"]), (32, 0.0, ["warning"])], ids=["all", "few", "constant"]
)
def test_numbers_that_are_equal(passes, high, expected):
    assert severities(no_learning_signal, silent("equals", passes, 0.0, high)) == expected


def test_two_sides_that_are_equal():
    f = only(no_learning_signal, idle("equals"))
    assert f.severity == "error" and "both sides" in f.message


def test_a_loss_that_could_not_be_taken_apart():
    unmeasured = (NotMeasured("terms", "why"),)
    assert no_verdict(no_learning_signal, measurement(not_measured=unmeasured)) == "not-measured"
