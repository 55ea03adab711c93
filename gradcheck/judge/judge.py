"""From measurements to findings: run the rules, agree over seeds, suppress, find root causes, sort."""

import traceback
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from gradcheck.analysis.costs import with_cost
from gradcheck.analysis.gaps import as_of_one_step
from gradcheck.config.settings import RuleSettings, Settings
from gradcheck.judge.consensus import agree, merge_sites
from gradcheck.judge.gate_rules import asserted
from gradcheck.judge.select import chosen, for_these, needs
from gradcheck.judge.suppress import split_by_comments, split_by_layers, unused_ignore, without_effect
from gradcheck.types.finding import SEVERITIES, Finding, RuleState, RuleStatus
from gradcheck.types.location import Ignore, Location
from gradcheck.types.measurement import Measurement, NotMeasured
from gradcheck.types.report import Report
from gradcheck.types.rule import NoVerdict, Rule, in_words


def fold(findings: Sequence[Finding], rules: Sequence[Rule]) -> list[Finding]:
    """The findings, with `cause` the code of the root cause where there is one.

    A rule's finding explains those of the rules that it names in `explains`, and of those in `explains_here` when they point at the
    same expression, where it is at least as severe. Chains lead to their top; of rules that explain each other, the one that is
    registered first is the cause.
    """
    explains = {r.code: frozenset(r.explains) for r in rules}
    here = {r.code: frozenset(r.explains_here) for r in rules}
    places: dict[str, set[tuple[str, int, int]]] = {}
    for finding in findings:
        if finding.location is not None:
            places.setdefault(finding.code, set()).add(_place(finding.location))
    order = {r.code: i for i, r in enumerate(rules)}
    worst: dict[str, Finding] = {}
    for finding in findings:
        if finding.code not in worst or _rank(finding) < _rank(worst[finding.code]):
            worst[finding.code] = finding
    ranked = sorted(worst, key=lambda code: (_rank(worst[code]), order.get(code, len(order))))

    def explained(finding: Finding, code: str) -> bool:
        if finding.code in here.get(code, ()) and finding.location is not None:
            return _place(finding.location) in places.get(code, ())
        return finding.code in explains.get(code, ())

    def direct(finding: Finding) -> str | None:
        causes = (c for c in ranked if c != finding.code and explained(finding, c) and _rank(worst[c]) <= _rank(finding))
        return next(causes, None)

    def top(code: str) -> str:
        path = [code]
        while (cause := direct(worst[path[-1]])) is not None:
            if cause in path:
                return min(path[path.index(cause) :], key=lambda c: order[c])
            path.append(cause)
        return path[-1]

    def root(finding: Finding) -> str | None:
        cause = direct(finding)
        return None if cause is None or top(cause) == finding.code else top(cause)

    return [replace(f, cause=root(f)) for f in findings]


def _place(location: Location) -> tuple[str, int, int]:
    return location.path, location.line, location.column


def _rank(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)


Judged = tuple[tuple[Finding, ...], tuple[Finding, ...], tuple[RuleState, ...]]
Outcome = list[Finding] | RuleState  # of one rule on one measurement
SILENT = ("crashed", "not-measured", "not-applicable")  # states without a verdict; of several seeds' the first is reported


def judge(measurements: Sequence[Measurement], rules: Sequence[Rule], settings: Settings) -> Judged:
    """Findings, suppressed findings, and the state of every rule, for measurements of one target, one per seed.

    A rule that raises is "crashed"; the others are not affected. With several seeds, a finding counts when more than half
    of them show it.
    """
    findings: list[Finding] = []
    suppressed: list[Finding] = []
    states: list[RuleState] = []
    used: set[tuple[str, int, str]] = set()
    ignores = _ignores(measurements)
    rules = for_these(rules, measurements)
    for rule in rules:
        if rule.code == unused_ignore.code:
            continue
        found, state = _over_seeds(rule, measurements, settings.rule(rule.name, rule.code))
        found, dropped = split_by_layers(found, settings.per_layer_ignores)
        found, commented, hits = split_by_comments(found, ignores)
        used |= hits
        findings += found
        suppressed += [*dropped, *commented]
        if state.status == "finding" and not found:
            state = replace(state, status="suppressed")
        states.append(state)
    if any(r.code == unused_ignore.code for r in rules):
        unused = [_overridden(f, settings.rule(f.name, f.code)) for f in without_effect(ignores, used, states)]
        findings += unused
        status: RuleStatus = "finding" if unused else "passed" if ignores else "not-applicable"
        reason = "" if ignores else "no ignore comments"
        states.append(RuleState(unused_ignore.code, unused_ignore.name, status, reason))
    return _sorted(fold(findings, rules), rules), tuple(suppressed), tuple(states)


def judge_again(report: Report, settings: Settings) -> Report:
    """The report with its measurements judged by other settings. What was not measured then is "not-measured"."""
    from gradcheck.judge.registry import load_rules

    rules = for_these(chosen(settings), report.measurements)
    ran = {state.code for state in report.rules}
    measured = needs(r for r in load_rules(settings.rule_paths) if r.code in ran)
    able = [r for r in rules if r.code in ran or measured.issuperset(r.needs)]
    findings, suppressed, states = judge(report.measurements, able, settings)
    by_code = {s.code: s for s in states}
    every = tuple(by_code.get(r.code) or _unmeasured(r, measured) for r in rules)
    return asserted(replace(report, findings=findings, suppressed=suppressed, rules=every, known=()), settings)


def _unmeasured(rule: Rule, measured: Collection[str]) -> RuleState:
    lacking = [n for n in rule.needs if n not in measured]
    reason = f"the saved run was made without looking at {', '.join(map(in_words, lacking))}"
    return RuleState(rule.code, rule.name, "not-measured", reason, lacking[0])


def _over_seeds(rule: Rule, measurements: Sequence[Measurement], own: RuleSettings) -> tuple[list[Finding], RuleState]:
    """Findings of one rule that the seeds agree on, and its state."""
    outcomes = [_outcome(rule, m, own) for m in measurements]
    verdicts = [o for o in outcomes if isinstance(o, list)]
    others = [o for o in outcomes if isinstance(o, RuleState)]
    state = min(others, key=lambda s: SILENT.index(s.status), default=None)
    found = agree(verdicts)
    if found:
        reason = f"{state.status} with another seed: {state.reason}" if state else ""
        return [_overridden(f, own) for f in found], RuleState(rule.code, rule.name, "finding", reason)
    if state is not None and (state.status == "crashed" or not verdicts):
        return [], state
    return [], RuleState(rule.code, rule.name, "passed")


def _outcome(rule: Rule, m: Measurement, own: RuleSettings) -> Outcome:
    """Findings of one rule on one measurement, or why there is no verdict. After too short a look, finding nothing is not a verdict."""
    lacking = [n for n in m.not_measured if n.what in rule.needs]
    blind = next((n for n in lacking if n.lack != "short"), None)
    if blind is not None:
        return _silenced(rule, blind)
    try:
        verdict = rule.check(m, _limits(rule, own.limits))
        if isinstance(verdict, NoVerdict):
            return RuleState(rule.code, rule.name, verdict.status, verdict.reason)
        found = [as_of_one_step(with_cost(f, m, rule.up_to), m) for f in merge_sites([_checked(f, rule) for f in verdict])]
    except Exception as e:
        return RuleState(rule.code, rule.name, "crashed", _crash(e))
    return found if found or not lacking else _silenced(rule, lacking[0])


def _silenced(rule: Rule, by: NotMeasured) -> RuleState:
    return RuleState(rule.code, rule.name, "not-measured", f"{in_words(by.what)}: {by.why}", by.what)


def _limits(rule: Rule, own: Mapping[str, float]) -> dict[str, float]:
    return {name: own.get(name, limit.value) for name, limit in rule.limits.items()}


def _checked(finding: Finding, rule: Rule) -> Finding:
    if not isinstance(finding, Finding):
        raise TypeError(f"the rule returned {type(finding).__name__}, not a Finding")
    if SEVERITIES.index(finding.severity) < SEVERITIES.index(rule.up_to):
        raise ValueError(f"the rule gave severity {finding.severity!r}; it may give {rule.up_to!r} at most")
    return replace(finding, code=rule.code, name=rule.name)


def _crash(error: Exception) -> str:
    """`ZeroDivisionError: float division by zero (activation.py, line 41)`."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename.replace(chr(92), '/').rpartition('/')[2]}, line {frame.lineno})"


def _overridden(finding: Finding, own: RuleSettings) -> Finding:
    return finding if own.severity is None else replace(finding, severity=own.severity)


def _ignores(measurements: Sequence[Measurement]) -> tuple[Ignore, ...]:
    return tuple(dict.fromkeys(i for m in measurements for i in m.ignores))


def _sorted(findings: Sequence[Finding], rules: Sequence[Rule]) -> tuple[Finding, ...]:
    """Most severe first; of one severity headlines before consequences, then in order of rules and places."""
    order = {rule.code: i for i, rule in enumerate(rules)}

    def key(f: Finding) -> tuple[int, bool, int, str, int, int, int]:
        place = (f.location.path, f.location.cell, f.location.line, f.location.column) if f.location else ("", 0, 0, 0)
        return (SEVERITIES.index(f.severity), f.cause is not None, order[f.code], *place)

    return tuple(sorted(findings, key=key))
