"""The `concise` format: a line per finding, `path:line:col: name (CODE) message`, as problem matchers and editors read it."""

from __future__ import annotations

from collections.abc import Sequence

from gradcheck.report.formatting import clean, summary, tree
from gradcheck.report.in_part import explained
from gradcheck.report.rows import place
from gradcheck.types.report import Report


def lines(report: Report) -> list[str]:
    """One line per headline, then the counts, and why a run was judged in part.

    A finding without a location is shown at the line that makes the model.
    """
    rows = [f"{place(report, f)}: {f.name} ({f.code}) {f.message}" for f, _ in tree(report.findings)]
    part = explained(report) if report.coverage.in_part else []
    return [clean(row) for row in [*rows, summary(report), *part]]


def render(reports: Sequence[Report], view: object = None) -> str:
    return "".join(f"{line}\n" for report in reports for line in lines(report))
