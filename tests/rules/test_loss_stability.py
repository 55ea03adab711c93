"""LOSS006 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.loss.unstable_loss import unstable_loss
from gradcheck.types.checks import LossOperation
from gradcheck.types.measurement import Measurement
from tests.literals import location, measurement
from tests.rules.verdicts import findings, no_verdict, only, severities


def operation(kind: str = "log", of: str = "other", minimum: float = 0.1, maximum: float = 0.9, **overrides: Any) -> LossOperation:
    return LossOperation(kind, of, **{"site": location(30), "minimum": minimum, "maximum": maximum} | overrides)


def with_operation(*details: Any, **overrides: Any) -> Measurement:
    return measurement(loss_operations=(operation(*details, **overrides),))


@pytest.mark.parametrize(
    ("kind", "of", "cure"),
    [
        ("log", "softmax", "log_softmax"),
        ("log", "sigmoid", "logsigmoid"),
        ("log", "sum of exponentials", "logsumexp"),
        ("division", "sum of exponentials", "torch.softmax"),
        ("log", "output", "softplus"),
        ("division", "output", "softplus"),
    ],
)
def test_forms_that_are_unstable_whatever_their_numbers(kind, of, cure):
    f = only(unstable_loss, with_operation(kind, of))
    assert f.severity == "warning" and cure in f.remedies[0].text and f.location == location(30)


@pytest.mark.parametrize(
    ("kind", "numbers", "expected"),
    [
        ("log", {"minimum": 0.9e-6}, ["warning"]),
        ("log", {"minimum": 1.1e-6}, []),
        ("division", {"minimum": 0.9e-6}, ["warning"]),
        ("division", {"minimum": 1.1e-6}, []),
        ("exp", {"maximum": 31.0}, ["warning"]),
        ("exp", {"maximum": 29.0}, []),
        ("exp", {"maximum": float("nan")}, []),
        ("division", {"minimum": None}, []),
    ],
)
def test_others_only_near_the_edge(kind, numbers, expected):
    assert severities(unstable_loss, with_operation(kind, **numbers)) == expected


def test_a_line_is_one_finding():
    pair = (
        operation("log", "sigmoid"),
        operation("log", "sigmoid", site=location(30, column=40)),
        operation("log", "softmax", site=location(31)),
    )
    assert len(findings(unstable_loss, measurement(loss_operations=pair))) == 2


def test_the_module_is_named_when_the_model_computes_its_loss():
    assert "(in head)" in only(unstable_loss, with_operation("log", "softmax", layer="head")).message


def test_no_verdict_without_such_operations():
    assert no_verdict(unstable_loss, measurement()) == "not-applicable"
