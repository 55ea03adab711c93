"""The baseline: findings that a project has accepted, so that a run fails only for new or worse ones."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradcheck.judge.consensus import key, target_name, telling, worst_first
from gradcheck.judge.gate_rules import stale_baseline, with_findings
from gradcheck.types.finding import SEVERITIES, Evidence, Finding, Severity
from gradcheck.types.location import Location
from gradcheck.types.report import Report
from gradcheck.types.rule import found

# Part of the stored value by which a number may get worse before its finding counts as new. Over three seeds of every fourth faulty
# sample model (26 findings with a number), no seed was farther from the median than this, and three were by more than a quarter.
TOLERANCE = 0.5
DECIDED = ("finding", "passed", "not-applicable", "suppressed")  # states of a rule that looked


@dataclass(frozen=True, order=True)
class KnownFinding:
    """A finding that is known. Paths are relative to the folder of the baseline file; there are no line numbers."""

    target: str
    key: str  # see judge/identity.py
    severity: Severity
    quantity: str = ""
    value: float | None = None
    comparison: str = ""


@dataclass(frozen=True)
class Compared:
    """What a report is against a baseline."""

    report: Report  # without the known findings, which are in `report.known`
    kept: tuple[KnownFinding, ...]
    stale: tuple[KnownFinding, ...]


def entries(reports: Iterable[Report], root: Path, least: Severity = "warning") -> tuple[KnownFinding, ...]:
    """An entry for every headline of severity `least` or above, sorted. Known findings of the reports are headlines too."""
    rows = [
        _entry(finding, report, root)
        for report in reports
        for finding in (*report.findings, *report.known)
        if _counts(finding) and SEVERITIES.index(finding.severity) <= SEVERITIES.index(least)
    ]
    return tuple(sorted(rows, key=_order))


def _order(entry: KnownFinding) -> tuple[str, str, float]:
    return entry.target, entry.key, entry.value if entry.value is not None and entry.value == entry.value else math.inf


def _counts(finding: Finding) -> bool:
    """Whether a finding can be known: consequences go with their cause, and META findings are about the gate itself."""
    return finding.cause is None and not finding.code.startswith("META")


def _entry(finding: Finding, report: Report, root: Path) -> KnownFinding:
    number = telling(finding)
    place = (target_name(report.target, root), key(finding, report.target, root), finding.severity)
    if number is None:
        return KnownFinding(*place)
    return KnownFinding(*place, number.quantity, number.value, number.comparison)


def compare(report: Report, baseline: Sequence[KnownFinding], root: Path, tolerance: float = TOLERANCE) -> Compared:
    """Takes the known findings out of a report. A finding that is more severe than its entry says, or worse by more than
    `tolerance` of the stored value, stays, and its message says so."""
    target = target_name(report.target, root)
    mine: dict[str, list[KnownFinding]] = defaultdict(list)
    for entry in sorted((e for e in baseline if e.target == target), key=lambda e: SEVERITIES.index(e.severity)):
        mine[entry.key].append(entry)
    known: list[Finding] = []
    worse: dict[int, Finding] = {}
    kept: list[KnownFinding] = []
    for finding in sorted((f for f in report.findings if _counts(f)), key=worst_first):
        same = mine[key(finding, report.target, root)]
        if not same:
            continue
        entry = same.pop(0)
        kept.append(entry)
        if how := worsened(finding, entry, tolerance):
            worse[id(finding)] = replace(finding, message=f"{finding.message} (worse than the baseline: {how})")
        else:
            known.append(finding)
    stale = [e for same in mine.values() for e in same if _decided(e, report)]
    untouched = [e for same in mine.values() for e in same if not _decided(e, report)]
    return Compared(_without(report, known, worse), (*kept, *untouched), tuple(stale))


def _without(report: Report, known: list[Finding], worse: Mapping[int, Finding]) -> Report:
    """Drops known findings and their consequences; rules that have nothing left are "suppressed"."""
    gone = {id(f) for f in known}
    causes = {f.code for f in known} - {f.code for f in report.findings if f.cause is None and id(f) not in gone}
    left = tuple(worse.get(id(f), f) for f in report.findings if id(f) not in gone and f.cause not in causes)
    codes = {f.code for f in left}
    states = tuple(
        replace(s, status="suppressed", reason="known: in the baseline") if s.status == "finding" and s.code not in codes else s
        for s in report.rules
    )
    return replace(report, findings=left, known=(*report.known, *known), rules=states)


def _decided(entry: KnownFinding, report: Report) -> bool:
    """Whether the rule of an entry came to a verdict in this report."""
    name = entry.key.partition(":")[0]
    return any(s.name == name and s.status in DECIDED for s in report.rules)


def worsened(finding: Finding, entry: KnownFinding, tolerance: float) -> str:
    """In words, how a finding is worse than its entry; empty if it is not."""
    if SEVERITIES.index(finding.severity) < SEVERITIES.index(entry.severity):
        return f"{finding.severity}, it was {entry.severity}"
    number = next((e for e in finding.evidence if e.quantity == entry.quantity and e.comparison == entry.comparison), None)
    if number is None or entry.value is None or not beyond(number, entry.value, tolerance):
        return ""
    return f"{number.quantity} {number.value:.3g}, it was {entry.value:.3g}"


def beyond(number: Evidence, old: float, tolerance: float) -> bool:
    """Whether a number is more faulty than `old` by more than a part of it; as a factor, where both are on one side of zero."""
    new = number.value
    if math.isnan(new) or math.isnan(old):
        return math.isnan(new) and not math.isnan(old)
    if new == old or number.comparison == "=":
        return False
    if number.comparison.startswith("<"):
        return new < old / (1 + tolerance) if old > 0 and new > 0 else new < old - tolerance * abs(old)
    return new > old * (1 + tolerance) if old > 0 else new > old + tolerance * abs(old)


def with_stale(compared: Compared, lines: Mapping[KnownFinding, int], path: str) -> Report:
    """The report with a finding for every stale entry, at its line of the baseline file."""
    new = [_stale(entry, Location(path, lines.get(entry, 1))) for entry in compared.stale]
    return with_findings(compared.report, stale_baseline, new)


def _stale(entry: KnownFinding, place: Location) -> Finding:
    message = f"{entry.key} is no longer found: `gradcheck baseline prune` removes it, or it would hide the next one like it"
    return replace(found("warning", message, location=place), code=stale_baseline.code, name=stale_baseline.name)


def updated(baseline: Sequence[KnownFinding], compared: Iterable[Compared], root: Path, least: Severity) -> tuple[KnownFinding, ...]:
    """The baseline with the entries of scanned targets replaced by what was found now; undecided entries stay."""
    done = list(compared)
    targets = {target_name(c.report.target, root) for c in done}
    others = [e for e in baseline if e.target not in targets]
    undecided = [e for c in done for e in c.kept if not _decided(e, c.report)]
    return tuple(sorted([*others, *undecided, *entries((c.report for c in done), root, least)], key=_order))


def pruned(baseline: Sequence[KnownFinding], compared: Iterable[Compared], only: Collection[str] | None = None) -> tuple[KnownFinding, ...]:
    """The baseline without stale entries; with `only`, also without those of targets that it does not name."""
    left = list(baseline)
    for entry in (e for c in compared for e in c.stale):
        left.remove(entry)
    return tuple(e for e in left if only is None or e.target in only)
