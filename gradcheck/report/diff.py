"""Differences between two runs as text, Markdown and JSON."""

import json
from collections.abc import Sequence
from typing import Any

from gradcheck.analysis.statistics import CATEGORIES
from gradcheck.analysis.wording import number
from gradcheck.judge.diff import STATES, FindingChange, NumberChange, TargetDiff
from gradcheck.report.formatting import clean, looked
from gradcheck.report.markdown import MARKER, code, escape
from gradcheck.saved_run import as_plain
from gradcheck.types.finding import Evidence

SHOWN = ("better", "worse", "changed")  # states of numbers that are worth a line


def text(differences: Sequence[TargetDiff], tolerance: float) -> str:
    """What changed, aligned in columns: scores and numbers first, then findings, then how many of each."""
    blocks = []
    for difference in differences:
        rows = [("", "base", "head", ""), *(_number_row(n) for n in changed(difference)), *(_row(c) for c in listed(difference))]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        blocks.append([clean(_heading(difference)), *(table if len(rows) > 1 else []), counts(difference), *in_part(difference)])
    return "\n\n".join("\n".join(block) for block in blocks) + f"\n{method(tolerance)}\n"


def markdown(differences: Sequence[TargetDiff], tolerance: float) -> str:
    lines = [MARKER]
    for difference in differences:
        lines += [f"### gradcheck: {code(difference.target)}{_side(difference)}", "", escape(counts(difference)), ""]
        lines += [line for text in in_part(difference) for line in (escape(text), "")]
        rows = [*(_number_row(n) for n in changed(difference)), *(_row(c) for c in listed(difference))]
        if rows:
            lines += ["| | base | head | |", "|---|---|---|---|"]
            lines += [f"| {' | '.join(escape(cell) for cell in row)} |" for row in rows] + [""]
    return "\n".join([*lines, f"<sub>{escape(method(tolerance))}</sub>"]) + "\n"


def as_json(differences: Sequence[TargetDiff], tolerance: float) -> str:
    return json.dumps({"schema_version": 1, "tolerance": tolerance, "targets": [_plain(d) for d in differences]}, indent=2) + "\n"


def _heading(difference: TargetDiff) -> str:
    return f"{difference.target}{_side(difference)}"


def _side(difference: TargetDiff) -> str:
    return f" (only in {difference.only})" if difference.only else ""


def method(tolerance: float) -> str:
    return f"A change: ranges over seeds that do not meet, or {100 * tolerance:g} % where there is one seed; scores: 5 points."


def counts(difference: TargetDiff) -> str:
    parts = [f"{n} {state}" for state in STATES if (n := difference.count(state))]
    nothing = "Nothing was found on either side." if difference.in_part else "No findings on either side."
    return f"{', '.join(parts)}." if parts else nothing


def in_part(difference: TargetDiff) -> list[str]:
    """`head was judged in part: 9 of 66 applicable rules looked. Could not repeat ...`"""
    sides = [(f"{side} was judged in part: {looked(part)}", part.reasons) for side, part in difference.in_part]
    return [clean("; ".join((text, *reasons))) for text, reasons in sides]


def changed(difference: TargetDiff) -> list[NumberChange]:
    return [change for change in (*difference.scores, *difference.stats) if change.state in SHOWN]


def listed(difference: TargetDiff) -> list[FindingChange]:
    return [change for change in difference.findings if change.state != "unchanged"]


def name_of(change: FindingChange | NumberChange) -> str:
    """`dead-units (ACT002) at model.py:7`, the title of a score, or the name of a statistic."""
    if isinstance(change, NumberChange):
        return CATEGORIES[change.name][0] if change.name in CATEGORIES else change.name
    place = change.finding.location
    where = f" at {place.file}:{place.line}" if place else ""
    return clean(f"{change.finding.name} ({change.finding.code}){where}")


def severity_of(change: FindingChange) -> str:
    return f"{change.was} -> {change.finding.severity}" if change.was else change.finding.severity


def _number_row(change: NumberChange) -> tuple[str, str, str, str]:
    return name_of(change), value_of(change.before), value_of(change.after), change.state


def _row(change: FindingChange) -> tuple[str, str, str, str]:
    before, after = (value_of(e.value if e else None) for e in (change.before, change.after))
    return name_of(change), before, after, f"{change.state} ({severity_of(change)})"


def value_of(value: float | None) -> str:
    return "-" if value is None else number(value)


def _plain(difference: TargetDiff) -> dict[str, Any]:
    return {
        "target": difference.target,
        "only": difference.only or None,
        "in_part": {side: as_plain(part) for side, part in difference.in_part},
        "counts": {state: difference.count(state) for state in STATES},
        "findings": [_finding(change) for change in difference.findings],
        "scores": [_number(change) for change in difference.scores],
        "stats": [_number(change) for change in difference.stats],
    }


def _finding(change: FindingChange) -> dict[str, Any]:
    finding = change.finding
    place = finding.location
    return {
        "state": change.state,
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity,
        "was": change.was or None,
        "message": finding.message,
        "path": place.path if place else None,
        "line": place.line if place else None,
        "before": _evidence(change.before),
        "after": _evidence(change.after),
    }


def _evidence(evidence: Evidence | None) -> dict[str, Any] | None:
    if evidence is None:
        return None
    return {"quantity": evidence.quantity, "value": as_plain(evidence.value), "unit": evidence.unit, "spread": _pair(evidence.spread)}


def _pair(spread: tuple[float, float] | None) -> list[float | str | None] | None:
    return None if spread is None else [as_plain(v) for v in spread]


def _number(change: NumberChange) -> dict[str, Any]:
    return {"name": change.name, "state": change.state, "before": as_plain(change.before), "after": as_plain(change.after)}
