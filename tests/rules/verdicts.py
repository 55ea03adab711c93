"""Runs one rule on a literal measurement."""

from __future__ import annotations

from gradcheck.types.finding import SEVERITIES, Finding
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import NoVerdict, Rule


def findings(rule: Rule, m: Measurement, **limits: float) -> list[Finding]:
    """What the rule finds, with some limits changed. Fails when it gives no verdict, or breaks a promise that holds for all findings."""
    verdict = rule.check(m, {name: limit.value for name, limit in rule.limits.items()} | limits)
    assert not isinstance(verdict, NoVerdict), verdict
    for f in verdict:
        assert SEVERITIES.index(f.severity) >= SEVERITIES.index(rule.up_to), f
        assert bool(f.confirmed) == (f.severity == "error"), f
        assert f.evidence and f.remedies, f
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
