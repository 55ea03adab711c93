"""The `junit` format: a test suite per target and a test case per rule, so that trends have passed rules too."""

from collections.abc import Sequence
from xml.etree import ElementTree as xml

from gradcheck.report.formatting import View, clean
from gradcheck.report.rows import NAME, Notice, Row, end_line, notices, numbers, rows, sentences
from gradcheck.types.finding import SEVERITIES, Finding, RuleState, Severity
from gradcheck.types.report import Report


def render(reports: Sequence[Report], view: View) -> str:
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
    shown = [_text(row) for row in mine] or [_follows(f) for f in every]
    if worst is not None:
        failure = xml.SubElement(case, "failure", message=clean(worst.message), type=worst.severity)
        failure.text = "\n\n".join(shown)
    elif shown:
        xml.SubElement(case, "system-out").text = "\n\n".join(shown)


def _text(row: Row) -> str:
    place = f"{row.place.path}:{row.place.line}-{end_line(row.place)}" if end_line(row.place) > row.place.line else str(row.place)
    return "\n".join([f"{place}: {row.finding.severity}", *sentences(row), *numbers(row.finding.evidence)])


def _follows(finding: Finding) -> str:
    return clean(f"follows from {finding.cause}: {finding.message}")
