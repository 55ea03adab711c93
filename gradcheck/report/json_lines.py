"""The `json-lines` format: a JSON object per finding and line, for filters such as jq."""

from __future__ import annotations

from collections.abc import Sequence

from gradcheck.nouns.report import Report
from gradcheck.report.json import line


def render(reports: Sequence[Report], view: object = None) -> str:
    """Every finding with the name of its target, consequences too; an empty text when there is none."""
    return "".join(line(finding, target=report.target) for report in reports for finding in report.findings)
