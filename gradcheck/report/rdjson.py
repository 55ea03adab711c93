"""The `rdjson` format: reviewdog's diagnostics. Its columns count UTF-8 bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gradcheck.report.in_part import NAME, notices
from gradcheck.report.rows import Row, end_line, rows, sentences
from gradcheck.types.finding import Severity
from gradcheck.types.report import Report

if TYPE_CHECKING:
    from gradcheck.report.view import View

SEVERITY: dict[Severity, str] = {"error": "ERROR", "warning": "WARNING", "info": "INFO"}


def render(reports: Sequence[Report], view: View | None = None) -> str:
    listed = rows(reports)
    diagnostics = [
        {
            "message": "\n".join(sentences(row)),
            "location": {"path": row.place.path, "range": _range(row)},
            "severity": SEVERITY[row.finding.severity],
            "code": {"value": row.finding.name},
        }
        for row in listed
    ]
    diagnostics += [
        {
            "message": notice.text,
            "location": {"path": notice.place.path, "range": {"start": {"line": notice.place.line, "column": 1}}},
            "severity": SEVERITY["warning" if view is not None and view.allow_partial else "error"],
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
