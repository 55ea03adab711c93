"""The edits for what a script trains: what was kept on copies of it, and what could not be tried there, in runs of the edited script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from gradcheck.capture.spec import ScriptSpec
from gradcheck.errors import GradcheckError
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.remedies.editing.draft import Draft
from gradcheck.remedies.editing.plan import SourcePlan
from gradcheck.remedies.writers import plan_edits
from gradcheck.repair.lab import signature
from gradcheck.repair.loop import Mended, edited, not_run
from gradcheck.repair.plan import advice, fixes_for, refused
from gradcheck.repair.rescan import faulty, looked_at, severities
from gradcheck.repair.script_run import ScriptRun, run_script, scanned
from gradcheck.repair.script_verification import Bench, Judged
from gradcheck.repair.verification import Verified
from gradcheck.types.fix import STAGES, Fix, Outcome, Proof
from gradcheck.types.report import Report


def outcomes_of(report: Report, copies: Verified | None, mended: Mended, trials: ScriptTrials, unsafe: bool) -> tuple[Outcome, ...]:
    """`report`: of the script as it was. `copies`: with what came of remedies on copies of this training; None: there were none."""
    tried = {e: o for e, o in trials.outcomes.items() if e.target == report.target}
    found = [_merged(o, tried, trials) for o in copies.outcomes] if copies is not None else []
    known = [signature([o.prescription]) for o in found]
    found += [_told(e, o, trials) for e, o in tried.items() if signature([e.fix]) not in known]
    after = trials.state.run.report_of(report.target)
    now = severities(after)
    if copies is None:
        ill = [f for f in faulty(report) if f.code in now or f.code not in looked_at(after)]
        found += refused(fixes_for(ill, report.measurement, CATALOGUE), unsafe)
    said = advice(report.findings, report.measurement, CATALOGUE, now)
    return (*mended.of(report.target), *sorted(found, key=lambda o: o.status != "kept"), *said)


def _merged(outcome: Outcome, tried: dict[ScriptFix, Outcome], trials: ScriptTrials) -> Outcome:
    """The outcome of a remedy on copies, with what its edit did in the script."""
    edit = next((e for e in tried if signature([e.fix]) == signature([outcome.prescription])), None)
    if edit is None:
        return outcome
    shown = _told(edit, tried[edit], trials)
    if shown.status == "kept":
        return replace(outcome, status="kept", reason=shown.reason, diff=shown.diff, cured=outcome.cured or shown.cured)
    return shown if outcome.status in ("kept", "not-needed") or shown.status != "inapplicable" else outcome


def _told(edit: ScriptFix, outcome: Outcome, trials: ScriptTrials) -> Outcome:
    return replace(outcome, diff=trials.diff_of(edit)) if outcome.status == "kept" else replace(outcome, effect=None, base=(), treated=())


def proof_of(report: Report, copies: Verified | None, outcomes: Sequence[Outcome], trials: ScriptTrials) -> Proof | None:
    """None when nothing was kept. The paired trainings on copies are reported if everything they tested has held in the script."""
    kept = [o for o in outcomes if o.status == "kept"]
    if not kept:
        return None
    after = trials.state.run.report_of(report.target)
    now, looked = severities(after), looked_at(after)
    cured = tuple(code for code in severities(report) if code in looked and code not in now)
    left = (*now, *(code for code in severities(report) if code not in looked))
    old = copies.proof if copies is not None else None
    treatments = {o.prescription.treatment for o in kept}
    if copies is None or old is None or not {p.treatment for p in copies.plan} <= treatments:
        return Proof(None, (), (), cured, left)
    return replace(old, cured=cured, left=left)


TRIES = 12  # runs of edited scripts, at most
TOGETHER = "it was chosen together with {names}, which did not hold in the script"
NO_RUN = "there was no time to run the script with it"


@dataclass(frozen=True, eq=False)
class ScriptFix:
    """A fix for one of the script's trainings."""

    target: str
    fix: Fix


@dataclass(frozen=True)
class ScriptState:
    """The script with some edits, and a run of it that was judged by all rules."""

    plan: tuple[ScriptFix, ...]
    spec: ScriptSpec
    run: ScriptRun
    source: SourcePlan | None = None


@dataclass
class ScriptTrials:
    """Edits tried on the script, from the mended one on. `now`: a run of that one, judged by all rules."""

    mended: Mended
    now: ScriptRun
    bench: Bench
    outcomes: dict[ScriptFix, Outcome] = field(default_factory=dict)  # the last one of each edit
    runs: int = 0

    def __post_init__(self) -> None:
        self.state = ScriptState((), self.mended.spec, self.now)

    # ------------------------------------------------------------- what held on copies

    def prove(self, edits: Sequence[ScriptFix]) -> None:
        """Keeps the edits that help: all together if that works, else those that help by themselves."""
        plan, start = tuple(edits), self.state
        while plan:
            whole = self._with(start, plan)
            if whole is None or not self._holds(start, whole, plan):
                break
            spare = next((e for e in reversed(plan) if len(plan) > 1 and not self._needed(start, whole, e)), None)
            if spare is None:
                self.state = whole
                return
            plan = tuple(e for e in plan if e is not spare)
            plan = self._without_extras(plan, spare)
        if len(plan) > 1:
            self._one_by_one(plan)

    def _one_by_one(self, plan: tuple[ScriptFix, ...]) -> None:
        while plan:
            edit, plan = plan[0], plan[1:]
            self.attempt(edit)
            if self.outcomes[edit].status != "kept":
                plan = self._without_extras(plan, edit)

    def _holds(self, before: ScriptState, after: ScriptState, plan: Sequence[ScriptFix]) -> bool:
        judged = {e: j for target in dict.fromkeys(e.target for e in plan) for e, j in self._judged(before, after, target, plan)}
        for edit, found in judged.items():
            self.outcomes[edit] = found.settled()
        return all(self.outcomes[e].status == "kept" for e in plan)

    def _needed(self, start: ScriptState, whole: ScriptState, edit: ScriptFix) -> bool:
        """Whether the script with all edits is better for this one."""
        rest = self._with(start, tuple(e for e in whole.plan if e is not edit and e not in start.plan))
        if rest is None:
            return True
        ((_, found),) = self._judged(rest, whole, edit.target, [edit])
        settled = found.settled()
        if settled.status != "kept":
            self.outcomes[edit] = settled
        return settled.status == "kept"

    def _without_extras(self, plan: tuple[ScriptFix, ...], refused: ScriptFix) -> tuple[ScriptFix, ...]:
        """Remedies that no finding asked for are only proved together with the cure of an error."""
        errors = {f.code for f in self.now.report_of(refused.target).findings if f.severity == "error"}
        if not errors.intersection(refused.fix.findings):
            return plan
        extras = [e for e in plan if e.target == refused.target and not e.fix.findings]
        for edit in extras:
            why = TOGETHER.format(names=refused.fix.treatment)
            self.outcomes[edit] = Outcome(edit.fix, "not-verified", why)
        return tuple(e for e in plan if e not in extras)

    # ------------------------------------------------------- what could not be tried on copies

    def attempt(self, edit: ScriptFix) -> None:
        """Tries one more edit; keeps it when the script is better for it."""
        after = self._with(self.state, (edit,))
        if after is None:
            return
        ((_, found),) = self._judged(self.state, after, edit.target, [edit])
        self.outcomes[edit] = found.settled()
        if self.outcomes[edit].status == "kept":
            self.state = after

    def left(self, target: str) -> set[str]:
        """Codes of errors and warnings that are still found."""
        return set(severities(self.state.run.report_of(target)))

    def diff_of(self, edit: ScriptFix) -> str:
        """What this edit alone changes in the files as the loop's edits left them."""
        drafts = [Draft(d.document, d.origin) for d in self.mended.drafts]
        return plan_edits([edit.fix], self.now.report_of(edit.target).measurement, self.now.files, drafts).own_diff

    # ---------------------------------------------------------------------------- runs

    def _with(self, state: ScriptState, more: Sequence[ScriptFix]) -> ScriptState | None:
        """The script with further edits, run and scanned; None when they cannot be written, or it cannot be run."""
        plan = (*state.plan, *more)
        source = self._written(plan)
        if source is None:
            return None
        if self.runs >= TRIES:
            self._note(more, "untried", NO_RUN)
            return None
        self.runs += 1
        spec = edited(self.mended.spec, source)
        try:
            run = run_script(spec, lambda trainings: scanned(trainings, self.bench.settings))
        except GradcheckError as error:
            self._note(more, "failed", not_run(error))
            return None
        return ScriptState(plan, spec, run, source)

    def _written(self, plan: Sequence[ScriptFix]) -> SourcePlan | None:
        """The edits of all trainings, in the files as the loop's edits left them."""
        drafts: Sequence[Draft] = [Draft(d.document, d.origin) for d in self.mended.drafts]
        for target in dict.fromkeys(e.target for e in plan):
            own = [e for e in plan if e.target == target]
            measurement = self.now.report_of(target).measurement
            try:
                source = plan_edits([e.fix for e in own], measurement, self.now.files, drafts)
            except GradcheckError as error:
                self._note(own, "inapplicable", error.message)
                return None
            missing = {p.treatment: why for p, why in source.unwritten}
            for edit in own:
                if edit.fix.treatment in missing:
                    self._note([edit], "inapplicable", missing[edit.fix.treatment])
            if missing:
                return None
            drafts = source.drafts
        return SourcePlan(tuple(drafts), tuple(e.fix for e in plan), ())

    def _judged(self, before: ScriptState, after: ScriptState, target: str, plan: Sequence[ScriptFix]) -> list[tuple[ScriptFix, Judged]]:
        own = [e for e in plan if e.target == target]
        report = before.run.report_of(target)
        found = self.bench.judge([e.fix for e in own], report, (before.spec, before.run), (after.spec, after.run))
        return list(zip(own, found, strict=True))

    def _note(self, edits: Iterable[ScriptFix], status: str, reason: str) -> None:
        for edit in edits:
            self.outcomes[edit] = Outcome(edit.fix, status, reason)  # type: ignore[arg-type]


def in_order(edits: Iterable[ScriptFix]) -> list[ScriptFix]:
    """By stage; within a stage the safe ones first."""
    return sorted(edits, key=lambda e: (STAGES.index(e.fix.stage), e.fix.applicability != "safe"))
