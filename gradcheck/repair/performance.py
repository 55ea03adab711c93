"""What a remedy changed: the result of a short training of a treated copy, and a finding's statistics before and after."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from gradcheck.config.settings import RuleSettings, Settings
from gradcheck.judge.judge import judge
from gradcheck.judge.select import chosen
from gradcheck.remedies.definition import changes_loss
from gradcheck.training.paired import CONFIDENCE, effect, paired_effect
from gradcheck.training.result import Result
from gradcheck.training.skill import skill
from gradcheck.training.trainer import Trainer
from gradcheck.types.finding import Evidence
from gradcheck.types.fix import Change, Effect, Fix
from gradcheck.types.report import Report
from gradcheck.types.rule import Rule

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
