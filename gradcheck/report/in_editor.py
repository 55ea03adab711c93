"""Findings of a saved run in a text that may have changed since: where they stand now, and which edits still apply."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gradcheck.judge.suppress import names_rule
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Outcome
from gradcheck.types.location import Location
from gradcheck.types.report import Report

IGNORE = re.compile(r"#\s*gradcheck:\s*ignore\[([^\]]*)\]", re.IGNORECASE)
_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,\d+)? @@")


def placed(report: Report, finding: Finding, lines: Sequence[str]) -> Location | None:
    """The finding's expression in the present lines of its file; None when it is no longer there, or silenced by a comment.

    The expression is the text of its span, ignoring blanks. It is looked for at its line, then at the nearest line that reads the same.
    """
    place = finding.location
    if place is None or place.cell:
        return None
    saved = next((m.snippets[place.file] for m in report.measurements if place.file in m.snippets), {})
    height = max(place.end_line, place.line) - place.line
    span = [saved.get(number, "") for number in range(place.line, place.line + height + 1)]
    wanted = [_bare(text) for text in _cut(span, place)]
    if not any(wanted):
        return None
    # The same span first: the rest of the line may have changed. Elsewhere whole lines must be unchanged.
    here = lines[place.line - 1 : place.line + height]
    if [_bare(text) for text in _cut(here, place)] == wanted:
        start = place.line
    else:
        whole = [_bare(text) for text in span]
        same = [i for i in range(1, len(lines) - height + 1) if [_bare(text) for text in lines[i - 1 : i + height]] == whole]
        if not same:
            return None
        start = min(same, key=lambda i: abs(i - place.line))
    shift = _indent(lines[start - 1]) - _indent(span[0])
    end = place.end_column + (0 if height else shift) if place.end_column else 0
    now = replace(place, line=start, column=place.column + shift, end_line=start + height, end_column=end)
    return None if silenced(finding, lines, now) else now


def _bare(text: str) -> str:
    return "".join(text.split())


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip())


def _cut(span: Sequence[str], place: Location) -> list[str]:
    """The lines of a span without what comes before and after it."""
    texts = list(span)
    if texts and place.end_column:
        texts[-1] = texts[-1][: place.end_column - 1]
    if texts:
        texts[0] = texts[0][place.column - 1 :]
    return texts


def silenced(finding: Finding, lines: Sequence[str], place: Location) -> bool:
    """Whether a comment at its lines, or on the line above, names the rule of a finding."""
    above = lines[place.line - 2] if place.line > 1 and lines[place.line - 2].lstrip().startswith("#") else ""
    comments = IGNORE.findall("\n".join((above, *lines[place.line - 1 : max(place.line, place.end_line)])))
    return any(names_rule(word.strip(), finding.code, finding.name) for names in comments for word in names.split(","))


@dataclass(frozen=True)
class LineChange:
    """Lines of a file in place of others. `start` counts from 1; an empty `old` inserts before that line."""

    path: str
    start: int
    old: tuple[str, ...]
    new: tuple[str, ...]


def proved(report: Report) -> list[Outcome]:
    """What was tried, helped, and can be written into the source."""
    return [outcome for outcome in report.outcomes if outcome.status == "kept" and outcome.diff]


def changes(diff: str) -> Iterator[LineChange]:
    """The hunks of a unified diff."""
    path, start = "", 0
    old: list[str] = []
    new: list[str] = []
    for line in [*diff.splitlines(), "@@ end"]:
        if line.startswith(("@@", "--- ", "+++ ")) and (old or new):
            yield LineChange(path, start, tuple(old), tuple(new))
            old, new = [], []
        if line.startswith("+++ "):
            path = line[4:].partition("\t")[0].removeprefix("b/")
        elif found := _HUNK.match(line):
            start = int(found[1]) + (found[2] == "0")
        elif line[:1] in " -+" and not line.startswith("--- "):
            old += [line[1:]] if line[0] != "+" else []
            new += [line[1:]] if line[0] != "-" else []


def applies(change: LineChange, lines: Sequence[str]) -> bool:
    """Whether the lines to be replaced are where they were."""
    return tuple(lines[change.start - 1 : change.start - 1 + len(change.old)]) == change.old
