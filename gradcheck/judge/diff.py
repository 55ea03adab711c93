"""What changed between two runs: findings, scores and numbers whose change exceeds the noise."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Literal, get_args

from gradcheck.analysis.statistics import STATS, values
from gradcheck.judge.baseline import DECIDED
from gradcheck.judge.consensus import key, target_name, telling, worst_first
from gradcheck.judge.scores import scores
from gradcheck.types.finding import SEVERITIES, Evidence, Finding
from gradcheck.types.report import Coverage, Report

NOISE = 0.1  # relative difference of two numbers that counts as a change if no spread over seeds is known
NOISE_SCORE = 5  # the same for scores, in points

# "unknown": the rule came to no verdict on the other side.
State = Literal["new", "worse", "better", "fixed", "unchanged", "unknown"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class FindingChange:
    """A headline of either run. `before` and `after` are its telling number."""

    state: State
    finding: Finding  # as in head, or as in base when it is gone
    before: Evidence | None = None
    after: Evidence | None = None
    was: str = ""  # severity in base, where it is another


@dataclass(frozen=True)
class NumberChange:
    """A score or a statistic of both runs. Of several seeds these are the medians."""

    name: str
    before: float | None
    after: float | None
    state: Literal["better", "worse", "changed", "unchanged", "unknown"]


@dataclass(frozen=True)
class TargetDiff:
    """A target in both runs, or in one of them: then `only` says in which."""

    target: str
    only: Literal["", "base", "head"] = ""
    findings: tuple[FindingChange, ...] = ()
    scores: tuple[NumberChange, ...] = ()
    stats: tuple[NumberChange, ...] = ()
    in_part: tuple[tuple[Literal["base", "head"], Coverage], ...] = ()  # the sides that were judged in part

    def count(self, state: State) -> int:
        return sum(change.state == state for change in self.findings)


def diff(base: Sequence[Report], head: Sequence[Report], root: Path, tolerance: float = NOISE) -> tuple[TargetDiff, ...]:
    """A difference per target, in the order of head. A single target on each side is compared whatever its name."""
    if len(base) == len(head) == 1:
        names = dict.fromkeys(target_name(report.target, root) for report in (*base, *head))
        return (replace(_compared(base[0], head[0], root, tolerance), target=" -> ".join(names)),)
    before = {target_name(report.target, root): report for report in base}
    after = {target_name(report.target, root): report for report in head}
    both = [
        _compared(before[name], report, root, tolerance) if name in before else _one_sided(report, "head", root)
        for name, report in after.items()
    ]
    return (*both, *(_one_sided(report, "base", root) for name, report in before.items() if name not in after))


def _one_sided(report: Report, side: Literal["base", "head"], root: Path) -> TargetDiff:
    state: State = "new" if side == "head" else "unknown"
    findings = tuple(_alone(f, state) for f in _headlines(report))
    return TargetDiff(target_name(report.target, root), side, findings, in_part=_in_part((side, report)))


def _in_part(*sides: tuple[Literal["base", "head"], Report]) -> tuple[tuple[Literal["base", "head"], Coverage], ...]:
    return tuple((side, report.coverage) for side, report in sides if report.coverage.in_part)


def _alone(finding: Finding, state: State) -> FindingChange:
    number = telling(finding)
    return FindingChange(state, finding, after=number) if state == "new" else FindingChange(state, finding, before=number)


def _headlines(report: Report) -> list[Finding]:
    """Worst first. Known findings of a baseline count as well."""
    heads = [f for f in (*report.findings, *report.known) if f.cause is None]
    return sorted(heads, key=worst_first)


def _compared(base: Report, head: Report, root: Path, tolerance: float) -> TargetDiff:
    left: dict[str, list[Finding]] = defaultdict(list)
    for finding in _headlines(base):
        left[key(finding, base.target, root)].append(finding)
    changes = []
    for finding in _headlines(head):
        same = left[key(finding, head.target, root)] if base.target == head.target else _like(finding, left)
        if same:
            changes.append(_change(same.pop(0), finding, tolerance))
        else:
            changes.append(_alone(finding, "new" if _decided(finding, base) else "unknown"))
    gone = [_alone(f, "fixed" if _decided(f, head) else "unknown") for rest in left.values() for f in rest]
    ordered = sorted([*changes, *gone], key=lambda c: (STATES.index(c.state), SEVERITIES.index(c.finding.severity)))
    numbers = _score_changes(base, head), _stat_changes(base, head, tolerance)
    return TargetDiff(target_name(head.target, root), "", tuple(ordered), *numbers, _in_part(("base", base), ("head", head)))


def _like(finding: Finding, left: dict[str, list[Finding]]) -> list[Finding]:
    """Of a target with another name: findings of the same rule, where their paths differ with the target's."""
    return next((fs for name, fs in left.items() if fs and name.partition(":")[0] == finding.name), [])


def _decided(finding: Finding, report: Report) -> bool:
    return any(s.code == finding.code and s.status in DECIDED for s in report.rules)


def _change(before: Finding, after: Finding, tolerance: float) -> FindingChange:
    old, new = telling(before), telling(after)
    ranks = SEVERITIES.index(after.severity) - SEVERITIES.index(before.severity)
    if ranks:
        return FindingChange("better" if ranks > 0 else "worse", after, old, new, was=before.severity)
    if old is None or new is None or (old.quantity, old.comparison) != (new.quantity, new.comparison):
        return FindingChange("unchanged", after, old, new)
    if not apart(_interval(old), _interval(new), tolerance) or new.comparison == "=":
        return FindingChange("unchanged", after, old, new)
    lower_is_faulty = new.comparison.startswith("<")
    return FindingChange("worse" if math.isnan(new.value) or (new.value < old.value) == lower_is_faulty else "better", after, old, new)


def _interval(number: Evidence) -> tuple[float, float]:
    return number.spread or (number.value, number.value)


def apart(a: tuple[float, float], b: tuple[float, float], tolerance: float) -> bool:
    """Whether two intervals over seeds do not meet, and differ by more than the tolerance where one has no width."""
    if any(math.isnan(v) for v in (*a, *b)):
        return any(math.isnan(v) for v in a) != any(math.isnan(v) for v in b)
    (low, high), (lowest, highest) = sorted([a, b])
    if lowest <= high:
        return False
    if a[0] < a[1] and b[0] < b[1]:
        return True
    size = max(abs(v) for v in (low, high, lowest, highest))
    return math.isinf(size) or lowest - high > tolerance * size


def _score_changes(base: Report, head: Report) -> tuple[NumberChange, ...]:
    before = {score.name: score.value for score in scores(base)}
    rows = []
    for score in scores(head):
        old, new = before.get(score.name), score.value
        if old is None or new is None:
            state: Literal["better", "worse", "unchanged", "unknown"] = "unknown" if old is not new else "unchanged"
        else:
            state = "unchanged" if abs(new - old) < NOISE_SCORE else "better" if new > old else "worse"
        rows.append(NumberChange(score.name, old, new, state))
    return tuple(rows)


def _stat_changes(base: Report, head: Report, tolerance: float) -> tuple[NumberChange, ...]:
    return tuple(
        _stat_change(name, values(name, base.measurements), values(name, head.measurements), tolerance)
        for name in STATS
        if name != "seconds"
    )


def _stat_change(name: str, before: Sequence[float], after: Sequence[float], tolerance: float) -> NumberChange:
    old, new = (median(numbers) if numbers else None for numbers in (before, after))
    if old is None or new is None:
        return NumberChange(name, old, new, "unknown" if old is not new else "unchanged")
    if not apart((min(before), max(before)), (min(after), max(after)), tolerance):
        return NumberChange(name, old, new, "unchanged")
    lower = STATS[name].lower
    return NumberChange(name, old, new, "changed" if lower is None else "better" if (new < old) == lower else "worse")


def unsure(differences: Iterable[TargetDiff]) -> bool:
    """Whether head was judged in part, so that the absence of new findings proves nothing."""
    return any(side == "head" for d in differences for side, _ in d.in_part)


def worse_off(differences: Iterable[TargetDiff]) -> bool:
    """Whether a warning or an error is new or worse."""
    return any(c.state in ("new", "worse") and c.finding.severity != "info" for d in differences for c in d.findings)
