"""The formats that are lists of findings: `concise`, `json-lines`, `gitlab` and `rdjson`; and `--statistics`."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from gradcheck.report.formatting import View, clean, counted, summary, tree
from gradcheck.report.rows import NAME, Row, end_line, explained, listed, notices, place, rows, sentences
from gradcheck.saved_run import line
from gradcheck.types.finding import SEVERITIES, Severity
from gradcheck.types.report import Report


def concise_lines(report: Report) -> list[str]:
    """One line per headline, then the counts, and why a run was judged in part.

    A finding without a location is shown at the line that makes the model.
    """
    rows = [f"{place(report, f)}: {f.name} ({f.code}) {f.message}" for f, _ in tree(report.findings)]
    part = explained(report) if report.coverage.in_part else []
    return [clean(row) for row in [*rows, summary(report), *part]]


def concise(reports: Sequence[Report], view: object = None) -> str:
    """A line per finding, `path:line:col: name (CODE) message`, as problem matchers and editors read it."""
    return "".join(f"{line}\n" for report in reports for line in concise_lines(report))


def json_lines(reports: Sequence[Report], view: object = None) -> str:
    """A JSON object a line, for filters such as jq: every finding, consequences too, and the coverage of a run that was judged in part."""
    return "".join(_report_lines(report) for report in reports)


def _report_lines(report: Report) -> str:
    part = report.coverage
    lines = [line(finding, target=report.target) for finding in report.findings]
    return "".join([*lines, line(part, target=report.target, name=NAME)] if part.in_part else lines)


GITLAB_SEVERITY: dict[Severity, str] = {"error": "critical", "warning": "major", "info": "info"}


def gitlab(reports: Sequence[Report], view: View | None = None) -> str:
    """A code quality report, as GitLab shows it in merge requests. Of entries that share a fingerprint it shows only the first: none do."""
    entries = [
        {
            "description": f"{row.title} {sentences(row)[0]}",
            "check_name": row.finding.name,
            "fingerprint": row.fingerprint,
            "severity": GITLAB_SEVERITY[row.finding.severity],
            "location": {"path": row.place.path, "lines": {"begin": row.place.line, "end": end_line(row.place)}},
        }
        for row in rows(reports)
    ]
    entries += [
        {
            "description": " ".join((notice.title, *notice.lines)),
            "check_name": NAME,
            "fingerprint": notice.fingerprint,
            "severity": GITLAB_SEVERITY["warning" if view is not None and view.allow_partial else "error"],
            "location": {"path": notice.place.path, "lines": {"begin": notice.place.line, "end": end_line(notice.place)}},
        }
        for notice in notices(reports)
    ]
    return json.dumps(entries, indent=2) + "\n"


REVIEWDOG_SEVERITY: dict[Severity, str] = {"error": "ERROR", "warning": "WARNING", "info": "INFO"}


def rdjson(reports: Sequence[Report], view: View | None = None) -> str:
    """Reviewdog's diagnostics. Their columns count UTF-8 bytes."""
    listed = rows(reports)
    diagnostics = [
        {
            "message": "\n".join(sentences(row)),
            "location": {"path": row.place.path, "range": _range(row)},
            "severity": REVIEWDOG_SEVERITY[row.finding.severity],
            "code": {"value": row.finding.name},
        }
        for row in listed
    ]
    diagnostics += [
        {
            "message": notice.text,
            "location": {"path": notice.place.path, "range": {"start": {"line": notice.place.line, "column": 1}}},
            "severity": REVIEWDOG_SEVERITY["warning" if view is not None and view.allow_partial else "error"],
            "code": {"value": NAME},
        }
        for notice in notices(reports)
    ]
    return json.dumps({"source": {"name": "gradcheck"}, "diagnostics": diagnostics}, indent=2) + "\n"


def _range(row: Row) -> dict[str, Any]:
    place, text = row.place, row.line_text
    start = {"line": place.line, "column": _bytes(text, place.column)}
    if end_line(place) > place.line or place.end_column <= place.column:
        return {"start": start}
    return {"start": start, "end": {"line": place.line, "column": _bytes(text, place.end_column)}}


def _bytes(line: str | None, column: int) -> int:
    """The column in UTF-8 bytes of a column in characters; the same where the line is not known."""
    return column if line is None else len(line[: column - 1].encode("utf-8", "backslashreplace")) + 1


def statistics(reports: Sequence[Report]) -> str:
    """`--statistics`: how often each rule found something, its worst severity, its name, and where; the worst and most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    worst: dict[tuple[str, str], Severity] = {}
    targets: dict[tuple[str, str], list[str]] = defaultdict(list)
    for report in reports:
        for finding in report.headlines:
            rule = finding.name, finding.code
            counts[rule] += 1
            worst[rule] = min(worst.get(rule, finding.severity), finding.severity, key=SEVERITIES.index)
            targets[rule] += [] if report.target in targets[rule] else [report.target]
    order = sorted(counts, key=lambda rule: (SEVERITIES.index(worst[rule]), -counts[rule], rule))
    width, names = len(str(max(counts.values(), default=0))), max((len(name) for name, _ in order), default=0)
    rows = [f"{counts[r]:>{width}}  {worst[r]:<7}  {r[0]:<{names}}  {r[1]:<9}  {listed(targets[r])}" for r in order]
    faulty = sum(bool(report.headlines) for report in reports)
    part = sum(report.coverage.in_part for report in reports)
    end = f"{counted(sum(counts.values()), 'finding')} in {faulty} of {counted(len(reports), 'target')}"
    return "".join(f"{clean(row)}\n" for row in [*rows, f"{end}; {part} judged in part" if part else end])
