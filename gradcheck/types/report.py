"""The result of a scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradcheck.types.coverage import Coverage, coverage
from gradcheck.types.finding import SEVERITIES, Finding, RuleState, Severity
from gradcheck.types.fix import Outcome, Proof
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.trial import TrialResult

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Report:
    """The result of a scan: what was found, what was measured, what was assumed."""

    target: str
    findings: tuple[Finding, ...]
    rules: tuple[RuleState, ...]
    measurements: tuple[Measurement, ...]  # one per seed
    suppressed: tuple[Finding, ...] = ()
    seconds: float = 0.0
    version: str = ""
    schema_version: int = SCHEMA_VERSION
    outcomes: tuple[Outcome, ...] = ()  # what was tried against the findings, in the order of the plan
    trial: TrialResult | None = None  # remedies against each other
    proof: Proof | None = None  # of what was kept, all together; None: nothing was
    known: tuple[Finding, ...] = ()  # findings that the baseline lists, and that are no worse than it says

    @property
    def measurement(self) -> Measurement:
        return self.measurements[0]

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.measurement.layers

    @property
    def headlines(self) -> tuple[Finding, ...]:
        """Findings that are not the consequence of another one."""
        return tuple(f for f in self.findings if f.cause is None)

    def consequences(self, finding: Finding) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.cause == finding.code) if finding.cause is None else ()

    def count(self, severity: Severity) -> int:
        return sum(f.severity == severity for f in self.findings)

    @property
    def coverage(self) -> Coverage:
        """How many of the applicable rules could look, and why the others could not."""
        return coverage(self.rules, self.measurements)

    def exit_code(self, fail_on: Severity | Literal["never"] = "error", *, allow_partial: bool = False) -> int:
        """1 if there is a finding at `fail_on` or above; 2 if the run was judged in part, unless `allow_partial`; else 0."""
        if fail_on not in (*SEVERITIES, "never"):
            raise ValueError(f"fail_on must be one of error, warning, info, never; got {fail_on!r}")
        at_or_above = SEVERITIES[: SEVERITIES.index(fail_on) + 1] if fail_on != "never" else ()
        if any(f.severity in at_or_above for f in self.findings):
            return 1
        return 2 if self.coverage.in_part and not allow_partial else 0

    def to_json(self, path: str | Path | None = None) -> str:
        """The whole report as JSON; written to `path` when one is given. Raises `gradcheck.errors.SavedRunError` when that fails."""
        from gradcheck.saved_run import dumps, write_text

        text = dumps(self)
        if path is not None:
            write_text(Path(path), text)
        return text

    def to_html(self, path: str | Path | None = None) -> str:
        """The report as one self-contained page; written to `path` when one is given. Raises as `to_json` does."""
        from gradcheck.report.html import render
        from gradcheck.saved_run import write_text

        text = render([self])
        if path is not None:
            write_text(Path(path), text)
        return text

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from gradcheck.report.html import shown

        return shown([self])

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """A report saved by `to_json`. Raises `gradcheck.errors.SavedRunError` when it is not one."""
        from gradcheck.saved_run import load

        return load(Path(path))
