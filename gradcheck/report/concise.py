"""The `concise` format: a line per finding, `path:line:col: name (CODE) message`, as problem matchers and editors read it."""

from __future__ import annotations

from gradcheck.nouns.report import Report
from gradcheck.report.words import clean, summary, tree


def lines(report: Report) -> list[str]:
    """One line per headline, then the counts. Without a location, the target's name stands where the place would."""
    rows = [f"{f.location or report.target}: {f.name} ({f.code}) {f.message}" for f, _ in tree(report.findings)]
    return [clean(row) for row in [*rows, summary(report)]]
