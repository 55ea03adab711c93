"""The result of a scan, and how many of the applicable rules could look: whether it is a full verdict, or one in part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradcheck.types.finding import SEVERITIES, Finding, RuleState, Severity
from gradcheck.types.fix import Outcome, Proof
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement, NotMeasured
from gradcheck.types.trial import TrialResult

# Share of the applicable rules that may have failed to look. Of the healthy samples the one with the fewest rules has 28 that look. No
# single check of gradcheck's keeps more than 5 of them from it (18 %, REG and the recurrent rules); without the training 30 and more are.
MOST_MISSED = 0.25
FEWEST_SEEN = 3  # steps of a script that the budget ended: with fewer no rule about its loop can look (GRAPH006 needs 3)
LOOKED = ("passed", "finding", "suppressed")
LATER = "a later training"  # what was not measured if a script was ended before it trained a second time
UNRELATED = "META"  # rules about comments, assertions and the baseline say nothing about the training


@dataclass(frozen=True)
class Coverage:
    """`in_part`: too many of the applicable rules failed to look for their silence to mean anything."""

    in_part: bool
    looked: int  # rules that came to a verdict
    applicable: int  # these, and those that failed to look. Left out: what does not apply, and what was not asked for
    silent: tuple[str, ...] = ()  # names of the rules that failed to look
    reasons: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()  # what the user can do


def coverage(states: Sequence[RuleState], measurements: Sequence[Measurement]) -> Coverage:
    """A rule fails to look when what it needs could not be measured, was measured for too short a time, or when the rule crashed.

    It is no failure if the user left something out (--fast, --select), if this model has nothing to look at, or if a rule cannot tell from
    a watched run: watching sees no more.
    """
    notes = [n for m in measurements for n in m.not_measured if n.lack in ("failed", "short")]
    lacking = {n.what for n in notes}
    watched = any(m.probe.live for m in measurements)
    mine = [s for s in states if not s.code.startswith(UNRELATED)]
    missed = [s for s in mine if _failed(s, lacking, watched)]
    looked = sum(s.status in LOOKED for s in mine)
    applicable = looked + len(missed)
    told = _telling(missed, notes)
    cut = [f"its budget ran out after {_steps(n)} of the script: its loop was not seen" for n in _cut(measurements)]
    later = [n for n in notes if n.what == LATER]
    return Coverage(
        len(missed) > MOST_MISSED * applicable or bool(cut or later),
        looked,
        applicable,
        tuple(s.name for s in missed),
        tuple(dict.fromkeys((*cut, *(n.why for n in (*later, *told)), *_crashes(missed)))),
        tuple(dict.fromkeys((*("raise --budget" for _ in cut), *(n.remedy for n in (*later, *told) if n.remedy)))),
    )


def _cut(measurements: Sequence[Measurement]) -> list[int]:
    """Steps of a script that had no time for a few of them."""
    loops = [m.loop for m in measurements if m.loop is not None]
    return [loop.steps for loop in loops[:1] if loop.ended == "budget" and 0 < loop.steps < FEWEST_SEEN]


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _failed(state: RuleState, lacking: set[str], watched: bool) -> bool:
    if state.status != "not-measured":
        return state.status == "crashed"
    return state.lacking in lacking if state.lacking else not watched


def _telling(missed: Sequence[RuleState], notes: Sequence[NotMeasured]) -> list[NotMeasured]:
    """The notes that kept rules from looking, the one that kept the most first."""
    silenced = [s.lacking for s in missed]
    by_reason: dict[str, int] = {}
    for what, why in dict.fromkeys((n.what, n.why) for n in notes):
        by_reason[why] = by_reason.get(why, 0) + silenced.count(what)
    return sorted((n for n in notes if by_reason[n.why]), key=lambda n: -by_reason[n.why])


def _crashes(missed: Sequence[RuleState]) -> list[str]:
    names = [s.name for s in missed if s.status == "crashed"]
    return [f"{len(names)} {'rule' if len(names) == 1 else 'rules'} crashed: {', '.join(names)}"] if names else []


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
