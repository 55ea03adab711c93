"""Findings as machine formats list them: headlines, most severe first, each with a place in the repository."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradcheck.judge.identity import fingerprint, key, seen_from
from gradcheck.nouns.places import Location
from gradcheck.nouns.report import Report
from gradcheck.nouns.verdict import SEVERITIES, Evidence, Finding
from gradcheck.report.words import clean, measured, tree


@dataclass(frozen=True)
class Row:
    """A headline with what follows from it. `fingerprint` is the same in every run, and no two rows share one."""

    report: Report
    finding: Finding
    below: tuple[Finding, ...]
    place: Location  # its path is relative to the repository
    fingerprint: str

    @property
    def title(self) -> str:
        return f"{self.finding.name} ({self.finding.code})"

    @property
    def line_text(self) -> str | None:
        """The source line of the place, where it was seen."""
        path = self.finding.location.path if self.finding.location else ""
        return next((m.snippets[path].get(self.place.line) for m in self.report.measurements if path in m.snippets), None)


def rows(reports: Sequence[Report], root: Path | None = None) -> list[Row]:
    """All headlines of all reports. `root`: of the repository; None looks for it."""
    root = root or repository()
    seen: Counter[str] = Counter()
    found = []
    for report in reports:
        for finding, below in tree(report.findings):
            name = f"{report.target}|{key(finding, report.target, root)}"
            found.append(Row(report, finding, tuple(below), in_repository(place(report, finding), root), fingerprint(name, seen[name])))
            seen[name] += 1
    return sorted(found, key=lambda row: SEVERITIES.index(row.finding.severity))


def place(report: Report, finding: Finding) -> Location:
    """Where to show a finding: its own place, else that of the report."""
    return finding.location or home(report)


def home(report: Report) -> Location:
    """Where to show what has no place of its own: the line that makes the model, else the first line of the target's file."""
    site = next((layer.site for layer in report.layers if layer.site is not None), None)
    file = report.target.partition(".py:")[0] + ".py" if ".py:" in report.target else report.target
    return site if site is not None and not file.endswith(".py") else Location(file, 1)


def repository() -> Path:
    """The folder that paths are relative to: GitHub's workspace, else the nearest folder with a .git, else the working directory."""
    here = Path.cwd()
    if workspace := os.environ.get("GITHUB_WORKSPACE"):
        return Path(workspace)
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def in_repository(location: Location, root: Path) -> Location:
    return replace(location, path=clean(seen_from(location.path, root)))


def end_line(location: Location) -> int:
    return max(location.end_line, location.line)


def sentences(row: Row) -> list[str]:
    """The finding in lines of plain text: message, confirmation, remedies, consequences."""
    finding = row.finding
    lines = [finding.message]
    if finding.confirmed:
        lines.append(f"confirmed {finding.confirmed}")
    lines += [f"help: {remedy.text}" for remedy in finding.remedies]
    lines += [f"follows: {f.name} ({f.code}) {f.message}" for f in row.below]
    return [clean(line) for line in lines]


def numbers(evidence: Sequence[Evidence]) -> list[str]:
    return [clean(measured(e)) for e in evidence]
