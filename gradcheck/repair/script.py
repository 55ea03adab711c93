"""The story of a fix of a training script: mend its loop, treat what it trains, and prove the edits by running the edited script."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gradcheck.capture.script import Capture, captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import Training, explain_ending, trainings_of
from gradcheck.capture.unseen import nothing_seen
from gradcheck.config.settings import Settings
from gradcheck.errors import TargetError
from gradcheck.pipeline import Progress
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.repair.fixed import Fixed
from gradcheck.repair.loop import Mended, mend, wanted
from gradcheck.repair.options import RepairOptions
from gradcheck.repair.plan import allowed, fixes_for
from gradcheck.repair.rescan import faulty
from gradcheck.repair.script_plan import TOGETHER, ScriptFix, ScriptTrials, in_order, outcomes_of, proof_of
from gradcheck.repair.script_run import ScriptRun, noted, run_script, scanned, share
from gradcheck.repair.script_verification import Bench
from gradcheck.repair.story import Repaired, repair
from gradcheck.types.fix import Outcome
from gradcheck.types.report import Report
from gradcheck.workload.process_state import untouched

INTERRUPTED = "it holds on a copy; interrupted before the script was run with it"


def fix_script(spec: ScriptSpec, settings: Settings, options: RepairOptions, progress: Progress | None = None) -> list[Fixed]:
    """Scans a training script, tries remedies on it and on copies of what it trains: one result for each of its optimizers.

    The script runs in a mirror of its folder, which keeps what it writes. The edits of all results are in the last one: they go together
    into the script. Raises TargetError when the script trains nothing, or fails for a reason that no finding explains.
    """
    work = _Work(replace(spec, sandbox=True), settings, options, progress or (lambda phase, fraction: None))
    with untouched():
        return work.results()


@dataclass
class _Work:
    spec: ScriptSpec
    settings: Settings
    options: RepairOptions
    progress: Progress
    repaired: dict[str, Repaired] = field(default_factory=dict)  # trainings that were treated on copies

    def results(self) -> list[Fixed]:
        self.progress("running the script", 0.0)
        with captured(self.spec) as run:
            seen, trainings = self._scanned(run, self.spec)
            explain_ending(run, self.spec, seen.reports)
            if not any(map(faulty, seen.reports)):
                return [Fixed(None, report, None, None) for report in seen.reports]
            loop = next(wanted(seen), None) is not None
            if not loop:
                self._treat(trainings, seen)
        bench = Bench(self.settings)
        mended = mend(self.spec, seen, bench, self.progress) if loop else Mended(self.spec, seen)
        now = self._treated_after(mended) if loop else seen
        trials = self._tried(mended, now, bench)
        if not self._settled(mended, seen, trials):
            mended, trials = self._without_undecided(mended, seen, trials)
        return [self._fixed(report, mended, trials, last=report is seen.reports[-1]) for report in seen.reports]

    def _scanned(self, run: Capture, spec: ScriptSpec) -> tuple[ScriptRun, list[Training]]:
        trainings = trainings_of(run, spec)
        try:
            return noted(run, trainings, scanned(trainings, self.settings, self.progress)), trainings
        except TargetError as error:
            raise (nothing_seen(run, spec) if run.error is not None else error) from error

    def _treated_after(self, mended: Mended) -> ScriptRun:
        """What the mended script trains is scanned and treated."""
        with captured(mended.spec) as run:
            now, trainings = self._scanned(run, mended.spec)
            self._treat(trainings, now)
        return now

    def _treat(self, trainings: Sequence[Training], now: ScriptRun) -> None:
        """On copies, each training that has an error or a warning, and can be repeated."""
        own = share(self.settings, trainings)
        for training, report in zip(trainings, now.reports, strict=True):
            workload = training.workload
            if workload is None or workload.borrowed is not None or not faulty(report):
                continue
            done = repair(workload, report, own, self.options, self.progress, training.seen, partial=True)
            self.repaired[training.name] = done
            if done.interrupted:
                break

    def _tried(self, mended: Mended, now: ScriptRun, bench: Bench) -> ScriptTrials:
        """Tries in the script what helped on copies, and what could not be tried there."""
        trials = ScriptTrials(mended, now, bench)
        kept = [ScriptFix(name, p) for name, done in self.repaired.items() for p in done.verified.plan]
        if any(done.interrupted for done in self.repaired.values()):
            trials.outcomes |= {e: Outcome(e.fix, "untried", INTERRUPTED) for e in kept}
            return trials
        trials.prove(in_order(kept))
        for edit in in_order(self._untried(now)):
            if trials.left(edit.target).intersection(edit.fix.findings):
                self.progress(f"running the script with {edit.fix.treatment}", 1.0)
                trials.attempt(edit)
        return trials

    def _settled(self, mended: Mended, seen: ScriptRun, trials: ScriptTrials) -> bool:
        """Whether the script with all edits justifies the edits of its loop that did no good by themselves."""
        state = trials.state
        for target, outcome in mended.undecided:
            others = [e.fix for e in state.plan if e.target == target]
            versions = (self.spec, seen), (state.spec, state.run)
            (judged,) = trials.bench.judge([outcome.prescription], seen.report_of(target), *versions, beside=others)
            if not others or judged.settled().status != "kept":
                return False
        return True

    def _without_undecided(self, old: Mended, seen: ScriptRun, trials: ScriptTrials) -> tuple[Mended, ScriptTrials]:
        """Drops the edits that did no good, neither by themselves nor with the others."""
        refused = [outcome.prescription.treatment for _, outcome in old.undecided]
        mended = mend(self.spec, seen, trials.bench, self.progress, refused)
        mended.outcomes += old.undecided
        now = run_script(mended.spec, lambda trainings: scanned(trainings, self.settings)) if mended.drafts else seen
        why = TOGETHER.format(names=", ".join(refused))
        told = {e: o if o.status != "kept" else Outcome(e.fix, "not-verified", why) for e, o in trials.outcomes.items()}
        return mended, ScriptTrials(mended, now, trials.bench, told)

    def _fixed(self, report: Report, mended: Mended, trials: ScriptTrials, *, last: bool) -> Fixed:
        """The result for one training. The edits, which go together, are in the last one."""
        done = self.repaired.get(report.target)
        verified = done.verified if done is not None else None
        outcomes = outcomes_of(report, verified, mended, trials, self.options.unsafe)
        proof = proof_of(report, verified, outcomes, trials)
        source = (trials.state.source or mended.plan()) if last else None
        after = trials.state.run.report_of(report.target) if proof is not None else None
        interrupted = done is not None and done.interrupted
        return Fixed(None, replace(report, outcomes=outcomes, proof=proof), after, source, interrupted=interrupted)

    def _untried(self, now: ScriptRun) -> list[ScriptFix]:
        """Remedies that findings ask for and that could not be tried on a copy, or that others made needless there."""
        found = []
        for report in now.reports:
            done = self.repaired.get(report.target)
            if done is not None:
                found += [
                    ScriptFix(report.target, o.prescription) for o in done.verified.outcomes if o.status in ("inapplicable", "not-needed")
                ]
                continue
            roots = [f for f in faulty(report) if f.cause is None] or list(faulty(report))
            wishes = allowed(fixes_for(roots, report.measurement, CATALOGUE), self.options.unsafe)
            found += [ScriptFix(report.target, p) for p in wishes]
        return found
