"""LOSS008, LOSS009 and LOSS010 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.loss.inert_loss_term import inert_loss_term
from gradcheck.rules.loss.no_learning_signal import no_learning_signal
from gradcheck.rules.loss.unbalanced_loss_terms import unbalanced_loss_terms
from gradcheck.types.checks import IdleTerm, Imbalance, LossTerm
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


@pytest.mark.parametrize(("operation", "words"), [("item", "plain number"), ("torch.autograd.grad", "no gradient themselves")])
def test_a_term_that_the_loop_cuts_off(operation, words):
    m = measurement(loop=loop(silent=(SilentTerm("cut", operation, location(40), 32),)))
    f = only(inert_loss_term, m)
    assert f.severity == "warning" and words in f.message and f.location == location(40)
    assert findings(no_learning_signal, m) == []


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


def unbalanced(**overrides: float) -> Measurement:
    strong, weak = LossTerm("sum", location(38), (64, 8), 0.5), LossTerm("mse_loss", location(37), (64, 64), 0.0156)
    values = {"ratio": 32.0, "gradients": 47.0, "spread": 0.3} | overrides
    return measurement(imbalance=Imbalance(strong, weak, **values))


def test_a_term_whose_entries_weigh_too_much():
    f = only(unbalanced_loss_terms, unbalanced())
    assert f.location == location(38) and "32 times" in f.message and "[64, 64]" in f.message


@pytest.mark.parametrize("name", ["ratio", "gradients", "spread"])
def test_limits_of_unbalanced_terms(name):
    limit = {"ratio": 10.0, "gradients": 5.0, "spread": 0.5}[name]
    beyond, within = (0.99, 1.01) if name == "spread" else (1.01, 0.99)
    assert severities(unbalanced_loss_terms, unbalanced(**{name: limit * beyond})) == ["warning"]
    assert findings(unbalanced_loss_terms, unbalanced(**{name: limit * within})) == []


def test_terms_that_weigh_their_entries_alike():
    assert findings(unbalanced_loss_terms, measurement(loss_given=True)) == []
    assert no_verdict(unbalanced_loss_terms, measurement(loss_given=False)) == "not-applicable"


@pytest.mark.parametrize(("passes", "severity"), [(15, "warning"), (16, "error")])
def test_a_target_that_is_new_noise(passes, severity):
    f = only(no_learning_signal, silent("drawn", passes))
    assert f.severity == severity and "the best prediction is 0" in f.message and f.location == location(40)
