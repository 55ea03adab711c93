"""Differences between two runs as text, Markdown, JSON, and as a page: one file without scripts, nothing from the network."""

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from gradcheck.analysis.statistics import CATEGORIES
from gradcheck.analysis.wording import number
from gradcheck.judge.diff import STATES, FindingChange, NumberChange, TargetDiff
from gradcheck.report.formatting import clean, looked
from gradcheck.report.html.markup import Child, html_page, join, table, tag, variables
from gradcheck.report.markdown import MARKER, code, escape
from gradcheck.report.table import aligned
from gradcheck.saved_run import as_plain
from gradcheck.types.finding import Evidence

SHOWN = ("better", "worse", "changed")  # states of numbers that are worth a line


def text(differences: Sequence[TargetDiff], tolerance: float) -> str:
    """What changed, aligned in columns: scores and numbers first, then findings, then how many of each."""
    blocks = []
    for difference in differences:
        rows = [("", "base", "head", ""), *(_number_row(n) for n in changed(difference)), *(_row(c) for c in listed(difference))]
        shown = aligned(rows, left=4) if len(rows) > 1 else []
        blocks.append([clean(f"{difference.target}{_side(difference)}"), *shown, counts(difference), *in_part(difference)])
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


# A sign to show beside the word for every state, and its colour.
SIGNS = {"new": "+", "worse": "▼", "better": "▲", "fixed": "✓", "unchanged": "=", "unknown": "?", "changed": "~"}
COLUMNS = ("state", "what", "base", "head")
COLORS = {"new": "error", "worse": "error", "better": "good", "fixed": "good"}

STYLE = """
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.9em;overflow-wrap:anywhere}
main{max-width:1000px;margin:0 auto;padding:24px}
section{margin:0 0 40px}
h1{font-size:20px}
h2{font-size:18px;padding-bottom:6px;border-bottom:1px solid var(--line)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:14px 0 4px}
th,td{text-align:left;padding:5px 14px 5px 0;vertical-align:top}
th{font-weight:400;color:var(--soft);font-size:13px}
tbody tr{border-top:1px solid var(--grid)}
td.number{white-space:nowrap}
td{overflow-wrap:anywhere}
td.state{white-space:nowrap;width:min(9em,20vw)}
.error{color:var(--error)}.good{color:var(--good)}
.soft{color:var(--soft)}
details{margin-top:12px}
summary{cursor:pointer}
"""


def page(differences: Sequence[TargetDiff], tolerance: float) -> str:
    """The document."""
    parts = [*(_target(d) for d in differences), tag("p", method(tolerance), class_="soft")]
    return document("gradcheck: base against head", f"gradcheck diff: {', '.join(d.target for d in differences)}", parts)


def document(heading: str, title: str, parts: Sequence[Markup]) -> str:
    """A page of tables."""
    return html_page(title, Markup(variables() + STYLE), tag("main", tag("h1", heading), parts))


def _target(difference: TargetDiff) -> Markup:
    side = tag("span", f" only in {difference.only}", class_="soft") if difference.only else None
    parts = [tag("h2", tag("code", difference.target), side), tag("p", counts(difference))]
    parts += [tag("p", tag("b", line)) for line in in_part(difference)]
    if rows := [_html_finding(change) for change in listed(difference)]:
        parts.append(table(COLUMNS, rows, "Findings"))
    if rows := [_html_row(x.state, join(name_of(x)), [value_of(x.before), value_of(x.after)]) for x in changed(difference)]:
        parts.append(table(COLUMNS, rows, "Scores and numbers"))
    if same := [_html_finding(change) for change in difference.findings if change.state == "unchanged"]:
        parts.append(tag("details", tag("summary", f"Unchanged findings ({len(same)})"), table(COLUMNS, same)))
    return tag("section", parts)


def _html_finding(change: FindingChange) -> tuple[Child, ...]:
    quantity = next((e.quantity for e in (change.after, change.before) if e is not None), "")
    said = join(tag("b", name_of(change)), " ", severity_of(change), tag("div", change.finding.message, class_="soft"))
    measured = tag("div", quantity, class_="soft") if quantity else None
    values = [value_of(e.value if e else None) for e in (change.before, change.after)]
    return _html_row(change.state, join(said, measured), values)


def _html_row(state: str, what: Markup, values: Sequence[str]) -> tuple[Child, ...]:
    assert state in (*STATES, "changed")
    shown = tag("td", tag("span", SIGNS[state], aria_hidden="true"), f" {state}", class_=f"state {COLORS.get(state, 'soft')}")
    return shown, what, *(tag("td", value, class_="number") for value in values)
