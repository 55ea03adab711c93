"""What machine formats list: headlines with their places in the repository, and what is said about a run that was judged in part."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradcheck.judge.consensus import fingerprint, key, seen_from
from gradcheck.report.formatting import clean, looked, measured, tree
from gradcheck.types.finding import SEVERITIES, Evidence, Finding
from gradcheck.types.location import Location, cell_file
from gradcheck.types.report import Report
from gradcheck.types.rule import in_words


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


NAME = "judged-in-part"  # in the formats that call what they list by a name


@dataclass(frozen=True)
class Notice:
    """A notice about one report. `place` is relative to the repository."""

    report: Report
    title: str
    lines: tuple[str, ...]
    place: Location
    fingerprint: str

    @property
    def text(self) -> str:
        return "\n".join((self.title, *self.lines))


def notices(reports: Sequence[Report]) -> list[Notice]:
    """One for each report that was judged in part."""
    root = repository()
    partial = [report for report in reports if report.coverage.in_part]
    return [_notice(report, root, [r.target for r in partial[:i]].count(report.target)) for i, report in enumerate(partial)]


def _notice(report: Report, root: Path, nth: int) -> Notice:
    title = f"judged in part: {looked(report.coverage)}"
    own = fingerprint(f"{report.target}|{NAME}", nth)
    return Notice(report, title, tuple(explained(report)), in_repository(home(report), root), own)


def explained(report: Report) -> list[str]:
    """`why: ...` and `help: ...`."""
    part = report.coverage
    return [clean(f"{label}: {text}") for label, texts in (("why", part.reasons), ("help", part.remedies)) for text in texts]


def unmeasured(report: Report) -> Iterator[str]:
    """What else was not looked at, and which rules are silent because of it; a line per reason."""
    told = report.coverage.reasons if report.coverage.in_part else ()
    by_reason: dict[str, list[str]] = defaultdict(list)
    for what, why in dict.fromkeys((n.what, n.why) for m in report.measurements for n in m.not_measured):
        if why not in told:
            by_reason[why].append(what)
    for why, whats in by_reason.items():
        silent = [s.name for s in report.rules if s.status == "not-measured" and s.lacking in whats]
        rules = f"; {listed(silent)} {'says' if len(silent) == 1 else 'say'} nothing" if silent else ""
        yield f"{listed([in_words(what) for what in whats])}: {why}{rules}"


MOST_NAMES = 6  # in one line


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
