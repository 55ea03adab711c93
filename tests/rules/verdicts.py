"""Runs one rule on a literal measurement."""

from __future__ import annotations

import math

from gradcheck.types.finding import SEVERITIES, Evidence, Finding
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import NoVerdict, Rule


def crosses(e: Evidence) -> bool:
    """Whether a number is on the faulty side of its limit, as it says."""
    if e.limit is None or e.comparison == "=" or math.isnan(e.value):
        return e.limit is None or e.value == e.limit or math.isnan(e.value)
    return {"<": e.value < e.limit, ">": e.value > e.limit, "<=": e.value <= e.limit, ">=": e.value >= e.limit}[e.comparison]


def findings(rule: Rule, m: Measurement, **limits: float) -> list[Finding]:
    """What the rule finds, with some limits changed. Fails when it gives no verdict, or breaks a promise that holds for all findings."""
    verdict = rule.check(m, {name: limit.value for name, limit in rule.limits.items()} | limits)
    assert not isinstance(verdict, NoVerdict), verdict
    for f in verdict:
        assert SEVERITIES.index(f.severity) >= SEVERITIES.index(rule.up_to), f
        assert bool(f.confirmed) == (f.severity == "error"), f
        assert f.evidence and f.remedies, f
        assert any(map(crosses, f.evidence)), f.evidence
        assert any(c.isdigit() for c in f.message) or "NaN" in f.message, f.message
        assert f.message[:1].lower() == f.message[:1] and not f.message.endswith("."), f.message
        for remedy in f.remedies:
            assert remedy.text[:1].islower() and not remedy.text.endswith("."), remedy
    return list(verdict)


def only(rule: Rule, m: Measurement, **limits: float) -> Finding:
    found = findings(rule, m, **limits)
    assert len(found) == 1, found
    return found[0]


def severities(rule: Rule, m: Measurement, **limits: float) -> list[str]:
    return [f.severity for f in findings(rule, m, **limits)]


def no_verdict(rule: Rule, m: Measurement) -> str:
    verdict = rule.check(m, {name: limit.value for name, limit in rule.limits.items()})
    assert isinstance(verdict, NoVerdict), verdict
    return verdict.status
