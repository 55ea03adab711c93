"""What was asked for comes first: a trial's verdict and curves, what a fix changed and proved, a watched run's course. The scan follows."""

from dataclasses import dataclass

from gradcheck.report.formatting import counted
from gradcheck.report.html.course import course
from gradcheck.report.html.markup import Child, join, tag
from gradcheck.report.html.rule_text import inline
from gradcheck.report.html.theme import sign
from gradcheck.report.html.treatments import proof
from gradcheck.report.html.trial import trial
from gradcheck.report.html.verdict import cure
from gradcheck.report.outcomes import tail
from gradcheck.types.report import Report
from gradcheck.types.trial import TrialResult


@dataclass(frozen=True)
class Lead:
    """The heading of a page (None: that of the scan), what stands under it, and its section."""

    heading: Child | None
    under: Child
    title: str
    content: Child


def lead(report: Report) -> Lead | None:
    """Of a trial, a fix or a watched run; None for a scan."""
    if report.trial is not None:
        heading = join(sign("good" if report.trial.recommended else "none"), tag("span", headline(report.trial)))
        said = tag("p", inline(report.trial.verdict), class_="message")
        return Lead(heading, said, "Trial", trial(report.trial))
    if report.outcomes:
        heading = join(sign("none" if report.proof is None else "good"), tag("span", inline(tail(report))))
        return Lead(heading, cure(report) if report.proof else None, "Treatment", treatment(report))
    run = course(report)
    return None if run is None else Lead(None, None, "The run", run)


def headline(result: TrialResult) -> str:
    """A trial in a few words."""
    chosen = result.entry(result.recommended) if result.recommended else None
    if chosen is not None:
        return f"{chosen.title[:1].upper()}{chosen.title[1:]} is recommended"
    return f"After {counted(result.steps, 'step')}: too short to recommend anything" if result.falling else "No remedy is recommended"


def treatment(report: Report) -> Child:
    """What was kept of what was tried."""
    return proof(report) or tag("p", "Nothing that was tried is kept. Each finding lists what was tried for it.")
