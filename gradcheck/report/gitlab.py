"""The `gitlab` format: a code quality report, as GitLab shows it in merge requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gradcheck.report.in_part import NAME, notices
from gradcheck.report.rows import end_line, rows, sentences
from gradcheck.types.finding import Severity
from gradcheck.types.report import Report

if TYPE_CHECKING:
    from gradcheck.report.view import View

SEVERITY: dict[Severity, str] = {"error": "critical", "warning": "major", "info": "info"}


def render(reports: Sequence[Report], view: View | None = None) -> str:
    """A JSON array. GitLab shows only the first of entries that share a fingerprint: here none do."""
    entries = [
        {
            "description": f"{row.title} {sentences(row)[0]}",
            "check_name": row.finding.name,
            "fingerprint": row.fingerprint,
            "severity": SEVERITY[row.finding.severity],
            "location": {"path": row.place.path, "lines": {"begin": row.place.line, "end": end_line(row.place)}},
        }
        for row in rows(reports)
    ]
    entries += [
        {
            "description": " ".join((notice.title, *notice.lines)),
            "check_name": NAME,
            "fingerprint": notice.fingerprint,
            "severity": SEVERITY["warning" if view is not None and view.allow_partial else "error"],
            "location": {"path": notice.place.path, "lines": {"begin": notice.place.line, "end": end_line(notice.place)}},
        }
        for notice in notices(reports)
    ]
    return json.dumps(entries, indent=2) + "\n"
