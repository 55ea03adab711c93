"""Findings by rule over many targets: `--statistics`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from gradcheck.report.formatting import clean, counted
from gradcheck.report.in_part import listed
from gradcheck.types.finding import SEVERITIES, Severity
from gradcheck.types.report import Report


def text(reports: Sequence[Report]) -> str:
    """A line for each rule that found something: how often, its worst severity, its name, and where; the worst and most frequent first."""
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
