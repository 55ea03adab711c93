"""The statistics of a finding before and after a remedy."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import replace

from gradcheck.config.settings import RuleSettings, Settings
from gradcheck.judge.judge import judge
from gradcheck.judge.select import chosen
from gradcheck.types.finding import Evidence
from gradcheck.types.fix import Change
from gradcheck.types.report import Report
from gradcheck.types.rule import Rule

NO_LIMITS = (0.0, -math.inf, math.inf)  # with such limits a rule always fires, and reports what it measures


def changes(before: Report, after: Report, codes: Collection[str], settings: Settings) -> tuple[Change, ...]:
    """How each number that was compared with a limit, in the findings of these codes, has changed."""
    found: dict[tuple[str, str], Change] = {}
    for finding in before.findings:
        for e in finding.evidence if finding.code in codes else ():
            if e.limit is not None and (finding.code, e.quantity) not in found:
                now = _measured_again(after, finding.code, e, settings)
                found[finding.code, e.quantity] = Change(finding.code, e.quantity, e.value, now, e.limit, e.comparison, e.unit, e.layer)
    return tuple(found.values())


def _measured_again(after: Report, code: str, evidence: Evidence, settings: Settings) -> float | None:
    """The same quantity in the treated workload: from the finding if it is still there, else from its rule, run without limits."""
    for value in _values(after, code, evidence.quantity):
        return value
    rules = [r for r in chosen(settings) if r.code == code]
    for limit in NO_LIMITS if rules else ():
        findings, _, _ = judge(after.measurements, rules, _unlimited(rules[0], settings, limit))
        for value in _values(replace(after, findings=findings), code, evidence.quantity):
            return value
    return None


def _values(report: Report, code: str, quantity: str) -> Iterator[float]:
    return (e.value for f in report.findings if f.code == code for e in f.evidence if e.quantity == quantity)


def _unlimited(rule: Rule, settings: Settings, limit: float) -> Settings:
    return replace(settings, rules={**settings.rules, rule.name: RuleSettings(None, dict.fromkeys(rule.limits, limit))})
