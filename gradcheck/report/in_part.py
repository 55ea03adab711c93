"""What every format says about a run that was judged in part: how many rules looked, why the others could not, and what to do."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradcheck.judge.finding_key import fingerprint
from gradcheck.judge.looks import in_words
from gradcheck.report.formatting import clean, looked
from gradcheck.report.rows import home, in_repository, repository
from gradcheck.types.location import Location
from gradcheck.types.report import Report

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
