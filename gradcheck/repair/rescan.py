"""A treated copy is measured and judged again: what a remedy changed."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from gradcheck.config.settings import RuleSettings, Settings
from gradcheck.judge.judge import judge
from gradcheck.judge.select import chosen
from gradcheck.pipeline import scan_workload
from gradcheck.remedies.definition import changes_loss
from gradcheck.training.paired import CONFIDENCE, effect, paired_effect
from gradcheck.training.result import Result
from gradcheck.training.skill import skill
from gradcheck.training.trainer import Trainer
from gradcheck.types.finding import SEVERITIES, Evidence, Finding, Severity
from gradcheck.types.fix import Change, Effect, Fix
from gradcheck.types.measurement import Measurement
from gradcheck.types.report import Report
from gradcheck.types.rule import Rule
from gradcheck.workload.treated import TreatedWorkload

TREATED: tuple[Severity, ...] = ("error", "warning")  # severities that are treated; an info is left to the user
UNSEEN = ("not-measured", "crashed")  # states of a rule that says nothing

Seen = Callable[[Measurement], Measurement]


def faulty(report: Report) -> tuple[Finding, ...]:
    return tuple(f for f in report.findings if f.severity in TREATED)


def severities(report: Report) -> dict[str, Severity]:
    """The worst severity of each code that is treated."""
    worst: dict[str, Severity] = {}
    for f in faulty(report):
        now = worst.get(f.code)
        worst[f.code] = f.severity if now is None or SEVERITIES.index(f.severity) < SEVERITIES.index(now) else now
    return worst


def looked_at(report: Report) -> frozenset[str]:
    """Codes of the rules that came to a verdict."""
    return frozenset(s.code for s in report.rules if s.status not in UNSEEN)


def rescan(treated: TreatedWorkload, settings: Settings, seconds: float, seen: Seen | None, codes: Collection[str] | None = None) -> Report:
    """A scan of the copy with one seed. `codes`: of the rules to run; all of the user's when None."""
    own = replace(settings, seeds=1, budget=max(seconds, 1.0), profile=False)
    if codes is not None:
        own = replace(own, select=tuple(codes), extend_select=())
    return scan_workload(treated.workload, own, None, seen, costs=False)


def worsened(before: dict[str, Severity], after: dict[str, Severity]) -> tuple[str, ...]:
    """Codes that are new, or more severe, and at least as severe as the worst that is gone."""
    cured = [SEVERITIES.index(s) for code, s in before.items() if code not in after]
    limit = min(cured, default=1)  # an error may turn into a warning, not into another error
    return tuple(
        code
        for code, severity in after.items()
        if SEVERITIES.index(severity) <= limit and SEVERITIES.index(severity) < SEVERITIES.index(before.get(code, "info"))
    )


WELL = 0.5  # loss in units of chance: the model trains, and no more is looked for (as in benchmarks/predictions.py)


def result_of(training: Trainer, applied: Sequence[Fix]) -> Result:
    workload = training.treated.workload
    score = skill(training.copy.model, workload.batches, workload.training_step)
    return Result(training.record(), not changes_loss(applied), score)


def compare(base: Sequence[Result], treated: Sequence[Result], confidence: float = CONFIDENCE) -> Effect:
    """The paired effect on the training loss, or, if that measures something else, on accuracy or explained variance."""
    if all(r.comparable for r in (*base, *treated)):
        return effect([r.run for r in base], [r.run for r in treated], confidence=confidence)
    pairs = list(zip(base, treated, strict=True))
    known = [s.metric for pair in pairs for r in pair if (s := r.skill) is not None]
    if known:
        values = [[-math.inf if r.failed or r.skill is None else r.skill.value for r in pair] for pair in pairs]
        return paired_effect([a for a, _ in values], [b for _, b in values], metric=known[0], lower_is_better=False, confidence=confidence)
    falls = [[r.relative(r.run.losses[0]) if r.run.losses else math.inf for r in pair] for pair in pairs]
    return paired_effect([a for a, _ in falls], [b for _, b in falls], metric="loss relative to its start", confidence=confidence)


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
