"""Scores: how healthy each side of a training looks, 0 to 100, from the findings and how far they are beyond their limits.

A score sums up findings; it adds no judgement of its own. The most severe finding of a category sets the band,

    error 0..49    warning 50..89    info 90..99    nothing found: 100

and the findings of that severity set the place in it: each one multiplies what is left by 0.9 / (1 + e), where e is how many
factors of ten its measured value lies beyond its limit (the farthest of its numbers; 1 for a finding without a limit, e.g. a
layer that is wired wrongly). One error right at its limit gives 44, one ten times beyond it 22.
Consequences count in their category too: a score says whether something is faulty there, the findings say why. A category in
which no rule came to a verdict, or which was judged in part without a finding, has no score.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gradcheck.analysis.statistics import CATEGORIES
from gradcheck.types.finding import SEVERITIES, Evidence, Finding, Severity
from gradcheck.types.report import Report, coverage

UNSCORED = ("META",)
BANDS: Mapping[Severity, tuple[int, int]] = {"error": (0, 49), "warning": (50, 89), "info": (90, 99)}
AT_LIMIT = 0.9  # share of the band that is left by one finding right at its limit
NO_LIMIT = 1.0  # decades that a finding without a limit counts as beyond one
VERDICTS = ("passed", "finding", "suppressed")


@dataclass(frozen=True)
class Score:
    """The score of one category. `value` None: its rules did not look, or too few of them."""

    name: str
    title: str
    families: tuple[str, ...]
    value: int | None
    worst: Severity | None  # most severe finding; None: nothing was found
    findings: tuple[Finding, ...]
    judged: int  # rules that came to a verdict
    silent: int  # rules that could not: not measured, or crashed


def scores(report: Report) -> tuple[Score, ...]:
    """A score per category that has rules in the report, in the order of CATEGORIES."""
    families = dict.fromkeys(_family(s.code) for s in report.rules)
    known = {f for _, fs in CATEGORIES.values() for f in fs}
    others = {f.lower(): (f, (f,)) for f in families if f not in known and f not in UNSCORED}
    every = {**CATEGORIES, **others}
    return tuple(_score(name, title, of, report) for name, (title, of) in every.items() if families.keys() & set(of))


def _score(name: str, title: str, families: tuple[str, ...], report: Report) -> Score:
    mine = [s for s in report.rules if _family(s.code) in families]
    states = [s.status for s in mine]
    findings = tuple(f for f in report.findings if _family(f.code) in families)
    worst = min((f.severity for f in findings), key=SEVERITIES.index, default=None)
    judged = sum(s in VERDICTS for s in states)
    silent = sum(s in ("not-measured", "crashed") for s in states)
    blind = not judged or coverage(mine, report.measurements).in_part
    value = None if blind and not findings else _value(findings, worst)
    return Score(name, title, families, value, worst, findings, judged, silent)


def _value(findings: tuple[Finding, ...], worst: Severity | None) -> int:
    if worst is None:
        return 100
    low, high = BANDS[worst]
    left = math.prod(AT_LIMIT / (1 + beyond(f)) for f in findings if f.severity == worst)
    return round(low + (high - low) * left)


def beyond(finding: Finding) -> float:
    """Factors of ten between the limit and the measured value: of the farthest number; infinite for one that is not finite.

    A number on the healthy side of its limit, which some findings list beside the others, counts as 0.
    """
    return max((d for e in finding.evidence if (d := _decades(e)) is not None), default=NO_LIMIT)


def _decades(evidence: Evidence) -> float | None:
    """None where there is no limit, or one that is 0 or of the other sign: a factor says nothing there."""
    if not math.isfinite(evidence.value):
        return math.inf
    if evidence.limit is None or evidence.comparison == "=" or evidence.value * evidence.limit <= 0:
        return None
    decades = math.log10(evidence.value / evidence.limit)
    larger_is_faulty = evidence.comparison.startswith(">") == (evidence.limit > 0)
    return max(decades if larger_is_faulty else -decades, 0.0)


def _family(code: str) -> str:
    return code.rstrip("0123456789")
