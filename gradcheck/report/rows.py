"""Findings as machine formats list them, most severe first, each with a place in the repository; and the formats that are such a list."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradcheck.judge.finding_key import fingerprint, key, seen_from
from gradcheck.report.formatting import clean, measured, tree
from gradcheck.types.finding import SEVERITIES, Evidence, Finding
from gradcheck.types.location import Location, cell_file
from gradcheck.types.report import Report


@dataclass(frozen=True)
class Row:
    """A headline with what follows from it. `fingerprint` is the same in every run, and no two rows share one."""

    report: Report
    finding: Finding
    below: tuple[Finding, ...]
    place: Location  # its path is relative to the repository; of a notebook the file as a whole, since no format knows cells
    fingerprint: str

    @property
    def title(self) -> str:
        return f"{self.finding.name} ({self.finding.code})"

    @property
    def line_text(self) -> str | None:
        """The source line of the place, where it was seen."""
        place = self.finding.location or self.place
        return next((m.snippets[place.file].get(place.line) for m in self.report.measurements if place.file in m.snippets), None)

    @property
    def where(self) -> str:
        """`path:line`, with the cell of a notebook."""
        place = self.finding.location or self.place
        return f"{cell_file(self.place.path, place.cell)}:{place.line}"


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
    """Where to show a finding: at its own place, else at the report's."""
    return finding.location or home(report)


def home(report: Report) -> Location:
    """Where to show findings without a place: the line that makes the model, else the first line of the target's file."""
    site = next((layer.site for layer in report.layers if layer.site is not None), None)
    file = report.target.partition(".py:")[0] + ".py" if ".py:" in report.target else report.target
    return site if site is not None and not file.endswith(".py") else Location(file, 1)


def repository() -> Path:
    """The folder to which paths are relative: GitHub's workspace, else the nearest folder with a .git, else the working directory."""
    here = Path.cwd()
    if workspace := os.environ.get("GITHUB_WORKSPACE"):
        return Path(workspace)
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), here)


def in_repository(location: Location, root: Path) -> Location:
    path = clean(seen_from(location.path, root))
    return Location(path, 1) if location.cell else replace(location, path=path)


def end_line(location: Location) -> int:
    return max(location.end_line, location.line)


def sentences(row: Row) -> list[str]:
    """The finding in lines of plain text: message, confirmation, remedies, consequences."""
    finding = row.finding
    place = finding.location
    cell = f"cell {place.cell}, line {place.line}: " if place is not None and place.cell else ""
    lines = [f"{cell}{finding.message}"]
    if finding.confirmed:
        lines.append(f"confirmed {finding.confirmed}")
    lines += [f"help: {remedy.text}" for remedy in finding.remedies]
    lines += [f"follows: {f.name} ({f.code}) {f.message}" for f in row.below]
    return [clean(line) for line in lines]


def numbers(evidence: Sequence[Evidence]) -> list[str]:
    return [clean(measured(e)) for e in evidence]
