"""A treated copy is measured and judged again."""

from collections.abc import Callable, Collection
from dataclasses import replace

from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_workload
from gradcheck.types.finding import SEVERITIES, Finding, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.report import Report
from gradcheck.workload.treated import TreatedWorkload

TREATED: tuple[Severity, ...] = ("error", "warning")  # severities that are treated; an info is left to the user
UNSEEN = ("not-measured", "crashed")  # states of a rule that says nothing

Seen = Callable[[Measurement], Measurement]


def faulty(report: Report) -> tuple[Finding, ...]:
    return tuple(f for f in report.findings if f.severity in TREATED)


def severities(report: Report) -> dict[str, Severity]:
    """The worst severity of each code that is treated."""
    worst: dict[str, Severity] = {}
    for f in faulty(report):
        now = worst.get(f.code)
        worst[f.code] = f.severity if now is None or SEVERITIES.index(f.severity) < SEVERITIES.index(now) else now
    return worst


def looked_at(report: Report) -> frozenset[str]:
    """Codes of the rules that came to a verdict."""
    return frozenset(s.code for s in report.rules if s.status not in UNSEEN)


def rescan(treated: TreatedWorkload, settings: Settings, seconds: float, seen: Seen | None, codes: Collection[str] | None = None) -> Report:
    """A scan of the copy with one seed. `codes`: of the rules to run; all of the user's when None."""
    own = replace(settings, seeds=1, budget=max(seconds, 1.0), profile=False)
    if codes is not None:
        own = replace(own, select=tuple(codes), extend_select=())
    return scan_workload(treated.workload, own, None, seen, costs=False)


def worsened(before: dict[str, Severity], after: dict[str, Severity]) -> tuple[str, ...]:
    """Codes that are new, or more severe, and at least as severe as the worst that is gone."""
    cured = [SEVERITIES.index(s) for code, s in before.items() if code not in after]
    limit = min(cured, default=1)  # an error may turn into a warning, not into another error
    return tuple(
        code
        for code, severity in after.items()
        if SEVERITIES.index(severity) <= limit and SEVERITIES.index(severity) < SEVERITIES.index(before.get(code, "info"))
    )
