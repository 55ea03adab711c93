"""The gate: which findings are known, and what the exit code is."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gradcheck.config.settings import Settings
from gradcheck.judge.baseline import Compared, KnownFinding, compare, with_stale
from gradcheck.judge.gate_rules import stale_baseline
from gradcheck.report.baseline_file import NAME, lines, read
from gradcheck.types.finding import Severity
from gradcheck.types.report import Report

FOUND, IN_PART = 1, 2


@dataclass(frozen=True)
class Known:
    """A baseline and its file."""

    path: Path
    entries: tuple[KnownFinding, ...]


def baseline_path(settings: Settings, given: str | None = None, *, isolated: bool = False) -> Path | None:
    """The file that `--baseline` or the configuration names, else the one of the usual name in the working directory."""
    if given is not None:
        return Path(given)
    if settings.baseline is not None:
        return settings.baseline
    return Path(NAME) if not isolated and Path(NAME).is_file() else None


def load_known(path: Path | None) -> Known | None:
    """The baseline of a file; None for None. Raises ConfigError when it cannot be read: before anything is scanned."""
    return None if path is None else Known(path, read(path))


def without_known(reports: Sequence[Report], settings: Settings, known: Known | None) -> list[Report]:
    """The reports without what the baseline lists, and with a finding for each of its entries that is stale."""
    if known is None:
        return list(reports)
    numbers = lines(known.path, known.entries)
    return [with_stale(compared, numbers, str(known.path)) for compared in compare_all(reports, known, settings)]


def compare_all(reports: Iterable[Report], known: Known, settings: Settings) -> list[Compared]:
    return [compare(report, known.entries, known.path.parent, settings.baseline_tolerance) for report in reports]


def least_severity(settings: Settings) -> Severity:
    """What a baseline lists: all that can fail a run, and at least errors and warnings."""
    return "info" if settings.fail_on == "info" else "warning"


def exit_code(reports: Sequence[Report], settings: Settings, *, exit_zero: bool = False, allow_stale: bool = False) -> int:
    """1 for findings at `fail-on` or above, for more than `max-warnings`, and for stale entries of the baseline, unless `exit_zero`; 2 for
    what was judged in part, unless `allow-partial`."""
    stale = any(f.code == stale_baseline.code for report in reports for f in report.findings)
    judged = [_without_stale(report) for report in reports]
    many = settings.max_warnings is not None and sum(r.count("warning") for r in judged) > settings.max_warnings
    failing = any(r.exit_code(settings.fail_on, allow_partial=True) for r in judged)
    return code(many or failing or (stale and not allow_stale), judged, settings, exit_zero=exit_zero)


def code(found: bool, reports: Sequence[Report], settings: Settings, *, exit_zero: bool) -> int:
    """What was found goes before what was judged in part."""
    if found and not exit_zero:
        return FOUND
    return IN_PART if not settings.allow_partial and any(r.coverage.in_part for r in reports) else 0


def _without_stale(report: Report) -> Report:
    return replace(report, findings=tuple(f for f in report.findings if f.code != stale_baseline.code))
