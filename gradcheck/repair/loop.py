"""The user's training loop is mended first: an edit is kept when a run of the edited script shows that it is a cure."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from gradcheck.capture.spec import ScriptSpec
from gradcheck.errors import GradcheckError
from gradcheck.pipeline import Progress
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.remedies.editing.draft import Draft
from gradcheck.remedies.editing.plan import SourcePlan
from gradcheck.remedies.writers import plan_edits
from gradcheck.repair.rescan import faulty
from gradcheck.repair.script_run import ScriptRun
from gradcheck.repair.script_verification import Bench
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Outcome
from gradcheck.types.report import Report

TRIES = 8  # edits that are tried, at most


@dataclass
class Mended:
    """The mended loop. `drafts`: the edited files, as the last run saw them; none when nothing was kept."""

    spec: ScriptSpec  # of the script with its edits
    run: ScriptRun  # of the same
    drafts: tuple[Draft, ...] = ()
    outcomes: list[tuple[str, Outcome]] = field(default_factory=list)  # with the training that the finding was about
    undecided: list[tuple[str, Outcome]] = field(default_factory=list)  # the status of outcomes for which nothing else speaks

    def of(self, target: str) -> tuple[Outcome, ...]:
        return tuple(outcome for name, outcome in self.outcomes if name == target)

    def plan(self) -> SourcePlan | None:
        """The edits so far; None when there are none."""
        kept = tuple(o.prescription for _, o in self.outcomes if o.status == "kept")
        return SourcePlan(self.drafts, kept, ()) if self.drafts else None


def wanted(seen: ScriptRun) -> Iterator[tuple[Report, Finding, Fix]]:
    """What the loop's findings ask for, causes before consequences."""
    for report in seen.reports:
        found = faulty(report)
        for finding in sorted(found, key=lambda f: f.cause is not None):
            for remedy in finding.remedies:
                treatment = CATALOGUE.get(remedy.name)
                if treatment is not None and treatment.loop:
                    yield from ((report, finding, p) for p in treatment.propose(finding, report.measurement))


def mend(spec: ScriptSpec, seen: ScriptRun, bench: Bench, progress: Progress, refused: Collection[str] = ()) -> Mended:
    """Tries the remedies of the loop one after another, each on the script as the ones before it left it. `refused`: those that are not.

    A remedy that was not kept is tried again after another one was: two faults may hide each other's cures.
    """
    mended = Mended(spec, seen)
    tried: set[tuple[str, str, str]] = set()
    failed: dict[tuple[str, str, str], Outcome] = {}
    for number in range(TRIES):
        untried = ((r, f, p) for r, f, p in wanted(mended.run) if (r.target, f.code, p.treatment) not in tried)
        options = ((r, f, p) for r, f, p in untried if p.treatment not in refused)
        report, finding, fix = next(options, (None, None, None))
        if report is None or finding is None or fix is None:
            break
        progress(f"running the script with {fix.treatment}", number / TRIES)
        trial = _try(mended, report, fix, bench)
        key = report.target, finding.code, fix.treatment
        failed.pop(key, None)
        if trial.run is None:
            tried.add(key)
            failed[key] = trial.outcome
        else:
            tried.clear()
            mended.outcomes.append((report.target, trial.outcome))
            mended.run, mended.drafts, mended.spec = trial.run, trial.drafts, trial.spec
            mended.undecided += [(report.target, trial.otherwise)] if trial.otherwise is not None else []
    mended.outcomes += [(target, outcome) for (target, _, _), outcome in failed.items()]
    return mended


@dataclass
class _Trial:
    outcome: Outcome
    spec: ScriptSpec
    drafts: tuple[Draft, ...] = ()
    run: ScriptRun | None = None  # None: the edit is not kept
    otherwise: Outcome | None = None  # the status of the edit when nothing else speaks for it


def _try(mended: Mended, report: Report, fix: Fix, bench: Bench) -> _Trial:
    fresh = [d.settled() for d in mended.drafts]
    seen = mended.run
    try:
        plan = plan_edits([fix], report.measurement, seen.files, fresh)
    except GradcheckError as error:
        return _Trial(Outcome(fix, "inapplicable", error.message), mended.spec)
    if plan.unwritten:
        return _Trial(Outcome(fix, "inapplicable", plan.unwritten[0][1]), mended.spec)
    spec = edited(mended.spec, plan)
    try:
        after = bench.run(spec, seen.unrepeatable if bench.judges_alone(fix.findings) else None)
        (judged,) = bench.judge([fix], report, (mended.spec, seen), (spec, after))
    except GradcheckError as error:
        return _Trial(Outcome(fix, "failed", not_run(error)), mended.spec)
    outcome = replace(judged.outcome, diff=plan.own_diff)
    drafts = tuple(d.settled() for d in plan.drafts)
    otherwise = judged.settled() if judged.otherwise is not None else None
    return _Trial(outcome, spec, drafts, after if outcome.status == "kept" else None, otherwise)


def edited(spec: ScriptSpec, plan: SourcePlan) -> ScriptSpec:
    return replace(spec, quiet=True, edits=tuple((os.path.realpath(path), data) for path, data in plan.texts.items()))


def not_run(error: GradcheckError) -> str:
    return f"the edited script could not be run: {error.message}"
