"""The `github` format: annotations by workflow commands, and a Markdown summary of the step."""

import os
from collections.abc import Sequence
from pathlib import Path

from gradcheck.errors import SavedRunError
from gradcheck.report.formatting import View, clean, summary
from gradcheck.report.rows import NAME, Row, end_line, notices, rows, sentences
from gradcheck.types.finding import SEVERITIES, Severity
from gradcheck.types.location import Location
from gradcheck.types.report import Report

COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "info": "notice"}
MOST = 10  # annotations of each level that GitHub takes from a step; it silently drops further ones
MOST_SUMMARY = 1024 * 1024  # bytes of a step's summary; GitHub refuses a larger one
SUMMARY_FILE = "GITHUB_STEP_SUMMARY"


def render(reports: Sequence[Report], view: View | None = None) -> str:
    """Commands for the most severe findings, plain lines for the rest, the counts, and how many were left out."""
    listed = rows(reports)
    annotated = [row for severity in SEVERITIES for row in [r for r in listed if r.finding.severity == severity][:MOST]]
    left = [row for row in listed if row not in annotated]
    lines = [_command(row) for row in annotated]
    level = "warning" if view is not None and view.allow_partial else "error"
    lines += [_annotation(level, notice.place, f"{NAME} {notice.report.target}", notice.text) for notice in notices(reports)]
    lines += [clean(f"{row.place}: {row.title} {sentences(row)[0]}") for row in left]
    lines += [clean(f"{report.target}: {summary(report)}") for report in reports]
    if left:
        lines.append(f"{len(left)} more not annotated (GitHub shows {MOST} of a level): the lines above name them")
    return "".join(f"{line}\n" for line in lines)


def _command(row: Row) -> str:
    return _annotation(COMMANDS[row.finding.severity], row.place, row.title, "\n".join(sentences(row)))


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
