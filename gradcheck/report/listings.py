"""The formats that are lists of findings: `concise`, `json-lines`, `junit`, `github`, `gitlab` and `rdjson`; and `--statistics`."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from gradcheck.analysis.wording import counted
from gradcheck.errors import SavedRunError
from gradcheck.report.formatting import View, clean, summary, tree
from gradcheck.report.rows import NAME, Notice, Row, end_line, explained, listed, notices, numbers, place, rows, sentences
from gradcheck.saved_run import line
from gradcheck.types.finding import SEVERITIES, RuleState, Severity
from gradcheck.types.location import Location
from gradcheck.types.report import Report


def concise_lines(report: Report) -> list[str]:
    """One line per headline, at the line that makes the model where it has none, the counts, and why a run was judged in part."""
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


def junit(reports: Sequence[Report], view: View) -> str:
    """Failures are the findings that fail the run (`--fail-on`); lesser ones are in the output of a test that passed."""
    failing = SEVERITIES[: SEVERITIES.index(view.fail_on) + 1] if view.fail_on != "never" else ()
    suites = [_suite(report, failing, view.allow_partial) for report in reports]
    root = xml.Element("testsuites", {"name": "gradcheck", **_sums(suites), "time": f"{sum(r.seconds for r in reports):.3f}"})
    root.extend(suites)
    for element in root.iter():  # XML holds no control characters
        element.attrib = {name: clean(value) for name, value in element.attrib.items()}
        element.text = "\n".join(map(clean, element.text.split("\n"))) if element.text else None
    xml.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{xml.tostring(root, encoding="unicode")}\n'


def _suite(report: Report, failing: Sequence[Severity], allow_partial: bool) -> xml.Element:
    listed = rows([report])
    cases = [_case(report, state, listed, failing) for state in report.rules]
    cases += [_in_part(notice, allow_partial) for notice in notices([report])]
    counts = {kind: str(sum(case.find(tag) is not None for case in cases)) for kind, tag in KINDS.items()}
    head = {"name": clean(report.target), "tests": str(len(cases)), **counts, "time": f"{report.seconds:.3f}"}
    suite = xml.Element("testsuite", head)
    suite.extend(cases)
    return suite


KINDS = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def _sums(suites: Sequence[xml.Element]) -> dict[str, str]:
    return {name: str(sum(int(suite.get(name, "0")) for suite in suites)) for name in ("tests", *KINDS)}


def _case(report: Report, state: RuleState, listed: Sequence[Row], failing: Sequence[Severity]) -> xml.Element:
    mine = [row for row in listed if row.finding.code == state.code]
    case = xml.Element("testcase", classname=f"gradcheck.{clean(report.target)}", name=f"{state.name} ({state.code})")
    if mine:
        case.set("file", mine[0].place.path)
        case.set("line", str(mine[0].place.line))
    if state.status == "crashed":
        xml.SubElement(case, "error", message=clean(state.reason), type="crashed")
    elif state.status in ("not-applicable", "not-measured", "suppressed"):
        reason = clean(state.reason)
        xml.SubElement(case, "skipped", message=f"{state.status.replace('-', ' ')}{': ' if reason else ''}{reason}")
    else:
        _findings(case, report, state, mine, failing)
    return case


def _in_part(notice: Notice, allowed: bool) -> xml.Element:
    """A case of its own, which exists only when it does not pass."""
    case = xml.Element("testcase", classname=f"gradcheck.{clean(notice.report.target)}", name=NAME)
    outcome = xml.SubElement(case, "skipped" if allowed else "error", message=notice.title, type=NAME)
    outcome.text = "\n".join(notice.lines)
    return case


def _findings(case: xml.Element, report: Report, state: RuleState, mine: Sequence[Row], failing: Sequence[Severity]) -> None:
    """A failure when one of the rule's findings fails the run; all findings go into the output."""
    every = [f for f in report.findings if f.code == state.code]
    worst = next((f for f in every if f.severity in failing), None)
    shown = [_text(row) for row in mine] or [clean(f"follows from {f.cause}: {f.message}") for f in every]
    if worst is not None:
        failure = xml.SubElement(case, "failure", message=clean(worst.message), type=worst.severity)
        failure.text = "\n\n".join(shown)
    elif shown:
        xml.SubElement(case, "system-out").text = "\n\n".join(shown)


def _text(row: Row) -> str:
    place = f"{row.place.path}:{row.place.line}-{end_line(row.place)}" if end_line(row.place) > row.place.line else str(row.place)
    return "\n".join([f"{place}: {row.finding.severity}", *sentences(row), *numbers(row.finding.evidence)])


COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "notice"}
MOST = 10  # annotations of each level that GitHub takes from a step; it silently drops further ones
MOST_SUMMARY = 1024 * 1024  # bytes of a step's summary; GitHub refuses a larger one
SUMMARY_FILE = "GITHUB_STEP_SUMMARY"


def github(reports: Sequence[Report], view: View | None = None) -> str:
    """Commands for the most severe findings, plain lines for the rest, the counts, and how many were left out."""
    listed = rows(reports)
    annotated = [row for severity in SEVERITIES for row in [r for r in listed if r.finding.severity == severity][:MOST]]
    left = [row for row in listed if row not in annotated]
    lines = [_annotation(COMMANDS[r.finding.severity], r.place, r.title, "\n".join(sentences(r))) for r in annotated]
    level = "warning" if view is not None and view.allow_partial else "error"
    lines += [_annotation(level, notice.place, f"{NAME} {notice.report.target}", notice.text) for notice in notices(reports)]
    lines += [clean(f"{row.place}: {row.title} {sentences(row)[0]}") for row in left]
    lines += [clean(f"{report.target}: {summary(report)}") for report in reports]
    if left:
        lines.append(f"{len(left)} more not annotated (GitHub shows {MOST} of a level): the lines above name them")
    return "".join(f"{line}\n" for line in lines)


def _annotation(level: str, place: Location, title: str, text: str) -> str:
    properties: dict[str, object] = {"title": clean(title), "file": place.path, "line": place.line, "endLine": end_line(place)}
    if end_line(place) == place.line:  # GitHub takes columns within one line only
        properties["col"] = place.column
        if place.end_column > place.column:
            properties["endColumn"] = place.end_column
    told = ",".join(f"{name}={_property(str(value))}" for name, value in properties.items())
    return f"::{level} {told}::{_data(text)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def append_summary(reports: Sequence[Report]) -> None:
    """Adds the reports to the summary of the running GitHub step, if there is one. Raises SavedRunError when that fails."""
    place = os.environ.get(SUMMARY_FILE)
    if not place:
        return
    from gradcheck.report.markdown import document

    try:
        path = Path(place)
        room = MOST_SUMMARY - (path.stat().st_size if path.exists() else 0) - 1
        text = document(reports, room)
        if text:
            with path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)
    except OSError as e:
        raise SavedRunError(f"cannot write the step summary {place}: {e.strerror}", hint=f"unset {SUMMARY_FILE}") from e
