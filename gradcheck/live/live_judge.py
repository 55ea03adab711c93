"""Judges a run while it goes on, at a bounded cost."""

import time
import weakref
from dataclasses import dataclass, field

from torch.optim import Optimizer

from gradcheck.config.settings import Settings
from gradcheck.judge.judge import judge
from gradcheck.judge.select import chosen
from gradcheck.live.models import living_optimizers
from gradcheck.live.record import Record
from gradcheck.types.finding import Finding, Severity
from gradcheck.types.report import Report
from gradcheck.types.rule import Rule
from gradcheck.version import __version__

EARLY = 5  # measured steps that are judged at once: what is wrong from the start should be said then


@dataclass
class LiveJudge:
    """The findings on a record, kept until more is measured."""

    record: Record
    settings: Settings
    share: float  # of the time of the run that judging may take after the first measured steps
    fresh: bool = False
    last: Report | None = None
    spent: float = 0.0
    _rules: list[Rule] = field(default_factory=list)
    _took: float = 0.0
    _made: int = -1  # how many were made when optimizers were looked for
    _living: list[weakref.ref[Optimizer]] = field(default_factory=list)

    def due(self, urgent: bool) -> bool:
        """Whether it is time to judge again: at once if something broke, otherwise as often as `share` allows."""
        early = len(self.record.measured) <= EARLY
        return urgent or early or self.spent + self._took <= self.share * (time.perf_counter() - self.record.started)

    def report(self) -> Report:
        if self.last is None or not self.fresh:
            self.last = self._judge()
            self.fresh = True
        return self.last

    def silent(self) -> Report:
        """What was measured, without judging it."""
        record = self.record
        measurement = record.measurement(living_optimizers())
        return Report(record.name, (), (), (measurement,), (), time.perf_counter() - record.started, __version__)

    def _optimizers(self) -> list[Optimizer]:
        """All of the process. Looking for them takes long where many objects live: it is done once, when one is made, and at the end."""
        record = self.record
        if record.log.over or self._made != record.made:
            self._made, self._living = record.made, [weakref.ref(o) for o in living_optimizers()]
        return [o for reference in self._living if (o := reference()) is not None]

    def _judge(self) -> Report:
        started = time.perf_counter()
        record = self.record
        self._rules = self._rules or list(chosen(self.settings))
        measurement = record.measurement(self._optimizers())
        findings, suppressed, states = judge([measurement], self._rules, self.settings)
        now = time.perf_counter()
        self._took = now - started
        if len(record.measured) > EARLY:
            self.spent += self._took
        return Report(record.name, findings, states, (measurement,), suppressed, now - record.started, __version__)


def at_least(findings: tuple[Finding, ...], severity: Severity) -> Finding | None:
    """The first finding of this severity or above."""
    from gradcheck.types.finding import SEVERITIES

    wanted = SEVERITIES[: SEVERITIES.index(severity) + 1]
    return next((f for f in findings if f.severity in wanted), None)
