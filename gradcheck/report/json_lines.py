"""The `json-lines` format: a JSON object per finding and line, for filters such as jq."""

from __future__ import annotations

from collections.abc import Sequence

from gradcheck.report.in_part import NAME
from gradcheck.saved_run import line
from gradcheck.types.report import Report


def render(reports: Sequence[Report], view: object = None) -> str:
    """Every finding with the name of its target, consequences too, and the coverage of a run that was judged in part."""
    return "".join(_report(report) for report in reports)


def _report(report: Report) -> str:
    part = report.coverage
    lines = [line(finding, target=report.target) for finding in report.findings]
    return "".join([*lines, line(part, target=report.target, name=NAME)] if part.in_part else lines)
