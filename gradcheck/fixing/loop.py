"""The user's training loop is mended first: an edit is kept when the edited script, run in a copy of its folder, shows it to be a cure."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from gradcheck.capture.script import LEFT_OUT, Capture, captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import Training, places, trainings_of
from gradcheck.config import Settings
from gradcheck.errors import GradcheckError, TargetError
from gradcheck.fixing.changes import changes
from gradcheck.fixing.exam import severities, sick, worsened
from gradcheck.judge.judge import judge
from gradcheck.judge.protocol import Need
from gradcheck.judge.select import chosen
from gradcheck.nouns.report import Report
from gradcheck.nouns.treatment import Outcome, Prescription
from gradcheck.nouns.verdict import Finding, Severity
from gradcheck.remedies.source import SourcePlan, plan_edits
from gradcheck.remedies.source.draft import Draft
from gradcheck.remedies.vocabulary import VOCABULARY
from gradcheck.scan import SCRIPT_BUDGET, Progress, scan_training

TRIES = 8  # edited scripts that are run, at most
LARGEST = 2e9  # bytes of a folder that is copied for it


@dataclass
class Look:
    """A run of the script, judged by the rules about its loop alone."""

    reports: list[Report]  # one a training
    files: tuple[str, ...]
    error: str = ""  # the exception that ended the run
    unrepeatable: tuple[str, ...] = ()  # trainings of which only the run itself could be judged, by all rules

    @property
    def severities(self) -> dict[str, Severity]:
        """The worst of each code, over the trainings."""
        return severities(replace(self.reports[0], findings=tuple(f for r in self.reports for f in r.findings)))


@dataclass
class Mended:
    """What became of the loop. `drafts`: the edited files, as the last run saw them; none when nothing was kept."""

    spec: ScriptSpec  # of the script with its edits
    drafts: tuple[Draft, ...] = ()
    outcomes: list[tuple[str, Outcome]] = field(default_factory=list)  # with the training that the finding was about

    def of(self, target: str) -> tuple[Outcome, ...]:
        return tuple(outcome for name, outcome in self.outcomes if name == target)

    def plan(self) -> SourcePlan | None:
        """The edits so far; None when there are none."""
        kept = tuple(o.prescription for _, o in self.outcomes if o.status == "kept")
        return SourcePlan(self.drafts, kept, ()) if self.drafts else None


def look(run: Capture, trainings: Sequence[Training], settings: Settings, whole: Collection[str] = ()) -> Look:
    """`whole`: trainings that are judged by all rules; those that cannot be repeated always are."""
    rules = [r for r in chosen(settings) if r.needs == ("loop",)]
    quick = replace(settings, budget=settings.budget or SCRIPT_BUDGET, fast=True, profile=False, seeds=1)
    reports = []
    for training in trainings:
        if training.workload is None or training.name in whole:
            reports.append(scan_training(training, quick))
            continue
        measurement = training.observed(get_args(Need))
        findings, suppressed, states = judge([measurement], rules, settings)
        reports.append(Report(training.name, findings, states, (measurement,), suppressed))
    error = run.ending.error if run.ending.how == "raised" else ""
    unrepeatable = tuple(t.name for t in trainings if t.workload is None)
    return Look(reports, _files(run, trainings), error, unrepeatable)


def _files(run: Capture, trainings: Sequence[Training]) -> tuple[str, ...]:
    """The user's files, with those beside the script that only hold a part of the loop."""
    home = os.path.dirname(os.path.abspath(run.files[0])) + os.sep
    own = (p.path for t in trainings for p in places(t.loop) if p.detail is None and os.path.abspath(p.path).startswith(home))
    return tuple(dict.fromkeys([*run.files, *own]))


def wanted(seen: Look) -> Iterator[tuple[Report, Finding, Prescription]]:
    """What the loop's findings ask for, causes before consequences."""
    for report in seen.reports:
        found = sick(report)
        for finding in sorted(found, key=lambda f: f.cause is not None):
            for remedy in finding.remedies:
                treatment = VOCABULARY.get(remedy.name)
                if treatment is not None and treatment.loop:
                    yield from ((report, finding, p) for p in treatment.prescribe(finding, report.measurement))


def mend(spec: ScriptSpec, seen: Look, settings: Settings, progress: Progress) -> Mended:
    """Tries the loop's remedies one after another, each on what the ones before it made of the script."""
    mended = Mended(replace(spec, quiet=True))
    refused: set[tuple[str, str, str]] = set()
    for number in range(TRIES):
        options = ((r, f, p) for r, f, p in wanted(seen) if (r.target, f.code, p.treatment) not in refused)
        report, finding, prescription = next(options, (None, None, None))
        if report is None or finding is None or prescription is None:
            break
        progress(f"running the script with {prescription.treatment}", number / TRIES)
        trial = _try(mended, report, prescription, seen, settings)
        mended.outcomes.append((report.target, trial.outcome))
        if trial.seen is None:
            refused.add((report.target, finding.code, prescription.treatment))
        else:
            seen, mended.drafts, mended.spec = trial.seen, trial.drafts, trial.spec
    return mended


@dataclass
class _Trial:
    outcome: Outcome
    spec: ScriptSpec
    drafts: tuple[Draft, ...] = ()
    seen: Look | None = None  # None: the edit is not kept


def _try(mended: Mended, report: Report, prescription: Prescription, seen: Look, settings: Settings) -> _Trial:
    fresh = [d.settled() for d in mended.drafts]
    try:
        plan = plan_edits([prescription], report.measurement, seen.files, fresh)
    except GradcheckError as error:
        return _Trial(Outcome(prescription, "inapplicable", error.message), mended.spec)
    if plan.unwritten:
        return _Trial(Outcome(prescription, "inapplicable", plan.unwritten[0][1]), mended.spec)
    diff = plan.own_diff
    try:
        _refuse_large(mended.spec)
        spec = replace(mended.spec, edits=tuple((os.path.realpath(path), data) for path, data in plan.texts.items()))
        with captured(spec) as run:
            after = look(run, trainings_of(run, spec), settings, seen.unrepeatable)
    except GradcheckError as error:
        why = f"the edited script could not be run in a copy of its folder: {error.message}"
        return _Trial(Outcome(prescription, "not-verified", why, diff=diff), mended.spec)
    outcome = replace(_judged(prescription, report, seen, after, settings), diff=diff)
    drafts = tuple(d.settled() for d in plan.drafts)
    return _Trial(outcome, spec, drafts, after if outcome.status == "kept" else None)


def _judged(prescription: Prescription, report: Report, before: Look, after: Look, settings: Settings) -> Outcome:
    twin = next((r for r in after.reports if r.target == report.target), after.reports[0])
    now, old = severities(twin), severities(report)
    left = [code for code in prescription.findings if code in now]
    gone = tuple(code for code in old if code not in now)
    new = worsened(before.severities, after.severities)
    measured = changes(report, twin, prescription.findings, settings)
    if after.error and after.error != before.error:
        return Outcome(prescription, "worse", f"the edited script fails: {after.error}")
    if left:
        return Outcome(prescription, "not-verified", f"{', '.join(left)} is still found in the edited script", measured)
    if new:
        return Outcome(prescription, "worse", f"with it comes {', '.join(new)}", measured, new=new)
    steps = twin.measurement.loop.steps if twin.measurement.loop is not None else 0
    reason = f"proved by {steps} steps of the edited script, in a copy of its folder"
    return Outcome(prescription, "kept", reason, measured, gone)


def _refuse_large(spec: ScriptSpec) -> None:
    """Raises TargetError when the folder is too large to be copied."""
    size = 0
    for folder, folders, files in os.walk(Path(spec.path).resolve().parent):
        folders[:] = [f for f in folders if f not in LEFT_OUT]
        for name in files:
            size += os.lstat(os.path.join(folder, name)).st_size
            if size > LARGEST:
                raise TargetError(f"the folder of {spec.path} holds more than {LARGEST / 1e9:g} GB", hint="apply the diff by hand")
