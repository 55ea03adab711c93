"""Small rules for tests of the judge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gradcheck.types.finding import Evidence, Finding, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Rule, Verdict


def finding(severity: Severity = "error", message: str = "faulty", **fields: Any) -> Finding:
    """As a rule makes it with `found`: without code and name."""
    return Finding("", "", severity, message, **fields)


def number(value: float, limit: float = 1.0) -> Evidence:
    return Evidence("slope", value, limit, ">")


def rule_that(gives: Callable[..., Verdict] | Verdict, code: str = "TEST001", name: str = "test-rule", **fields: Any) -> Rule:
    """A rule that returns `gives`, or what `gives(m, limits)` returns."""
    check = gives if callable(gives) else lambda m, limits: gives
    return Rule(code, name, fields.pop("up_to", "error"), check, **fields)


def above(limit: float = 0.5, **fields: Any) -> Rule:
    """Fires when the seed's first loss is above its limit `start`."""

    def check(m: Measurement, limits: Any) -> Verdict:
        """A test rule."""
        start = m.probe.losses[0]
        return [finding(evidence=(number(start, limits["start"]),))] if start > limits["start"] else []

    return rule_that(check, limits={"start": Limit(limit, "", "a test")}, **fields)
