"""What a run of the edited script must show: the finding is gone, no worse one appeared, and the script trains better."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.judge.select import chosen
from gradcheck.remedies.definition import changes_loss
from gradcheck.repair.rescan import changes, looked_at, severities, worsened
from gradcheck.repair.script_run import LOOP_ALONE, ScriptRun, Standing, loops_judged, run_script, standing
from gradcheck.types.fix import Fix, Outcome, OutcomeStatus
from gradcheck.types.report import Report

# The losses are of different batches, of the model in another mode, or no longer of a model that sees the answer.
OTHER_CONDITIONS = ("next-batch", "restore-training-mode", "causal-attention", "merge-heads", "weigh-micro-batches", "shift-labels")
SAME_VALUE = ("stable-loss", "guard-domain")  # the loss is the same if it can be computed
# Their effect need not show in the losses of the first steps: they must only do no harm.
HARMLESS = ("move-clipping", "complete-scaler", "scale-loss", *OTHER_CONDITIONS)
# Without these, each step is a multiple of what was intended, and the first ones may be faster for it: with the edit, the loss must still
SLOWER = ("clear-gradients", "scale-loss")
KEPT_SHARE = 0.75
LONGER = 4  # times the steps, where the first ones show no difference
LONG_SECONDS = 30.0  # for such a run


Version = tuple[ScriptSpec, ScriptRun]  # the script with some edits, and a run of it


@dataclass(frozen=True)
class Judged:
    """`otherwise`: the status of an edit that does no harm and no visible good."""

    outcome: Outcome
    otherwise: OutcomeStatus | None = None

    def settled(self) -> Outcome:
        return replace(self.outcome, status=self.otherwise, cured=()) if self.otherwise is not None else self.outcome


def same_loss(fixes: Sequence[Fix]) -> bool:
    """Whether the losses of the script with and without these measure the same."""
    others = [p for p in fixes if p.treatment not in SAME_VALUE]
    return not changes_loss(others) and not any(p.treatment in OTHER_CONDITIONS for p in fixes)


@dataclass
class Bench:
    """Runs of the script, compared. Long runs are kept: the script as it is stands beside several edits of it."""

    settings: Settings
    _long: dict[ScriptSpec, ScriptRun] = field(default_factory=dict)

    def judges_alone(self, codes: Iterable[str]) -> bool:
        """Whether all of these are codes of rules about the loop alone."""
        return set(codes) <= {r.code for r in chosen(self.settings) if r.needs == LOOP_ALONE}

    def run(self, spec: ScriptSpec, whole: Collection[str] | None) -> ScriptRun:
        """A run that is judged by the rules about its loop; trainings in `whole` by all rules; None: all are."""
        return run_script(spec, lambda trainings: loops_judged(trainings, self.settings, whole))

    def judge(self, fixes: Sequence[Fix], report: Report, before: Version, after: Version, beside: Sequence[Fix] = ()) -> list[Judged]:
        """What the edited script shows of fixes for one training, which was told of in `report`. `beside`: its other edits."""
        found = [self._seen(p, report, before[1], after[1]) for p in fixes]
        failed = [f for f in found if f.outcome.status != "kept"]
        if failed:
            return found
        same = same_loss([*fixes, *beside])
        trained = standing(before[1], after[1], report.target, same_loss=same)
        if trained.kind in ("same", "unknown") or (trained.kind == "worse" and not after[1].several):
            longer = self._longer(before[0], before[1]), self._longer(after[0], after[1])
            trained = standing(*longer, report.target, same_loss=same)
        return [self._trained(f.outcome, report, trained, after[1]) for f in found]

    def _longer(self, spec: ScriptSpec, short: ScriptRun) -> ScriptRun:
        """A run with more steps; the same one, where the script has ended by itself."""
        if short.ended:
            return short
        if spec not in self._long:
            steps = LONGER * max(1, short.steps)
            self._long[spec] = self.run(replace(spec, steps=steps, budget=min(LONG_SECONDS, spec.budget or LONG_SECONDS), quiet=True), ())
        return self._long[spec]

    def _seen(self, fix: Fix, report: Report, before: ScriptRun, after: ScriptRun) -> Judged:
        """What the rules say of the edited script."""
        twin = after.report_of(report.target)
        now = severities(twin)
        looked = looked_at(twin)
        left = [code for code in fix.findings if code in now or code not in looked]
        new = worsened({c: s for c, s in before.severities.items() if c in looked}, after.severities)
        measured = changes(report, twin, fix.findings, self.settings)
        if after.error and after.error != before.error:
            return Judged(Outcome(fix, "worse", f"the edited script fails: {after.error}"))
        if left:
            return Judged(Outcome(fix, "not-verified", f"{', '.join(left)} is still found in the edited script", measured))
        if new:
            return Judged(Outcome(fix, "worse", f"with it comes {', '.join(new)}", measured, new=new))
        gone = tuple(code for code in severities(report) if code in looked and code not in now)
        return Judged(Outcome(fix, "kept", "", measured, gone))

    def _trained(self, outcome: Outcome, report: Report, trained: Standing, after: ScriptRun) -> Judged:
        """What the losses say, where the rules say that it is a cure."""
        several = after.several and trained.kind != "unknown"  # of trainings in turns each one's loss may rise
        if trained.kind == "worse" and not several:
            return self._slower(outcome, trained)
        if trained.kind == "better" or several or (trained.kind == "same" and _is_to_do_no_harm(outcome.prescription, report)):
            return Judged(replace(outcome, reason=f"the edited script was run: {trained.text()}"))
        gone = "its finding is gone, but " if outcome.prescription.findings else ""
        return Judged(replace(outcome, reason=f"{gone}run as edited, {trained.text(hoped=True)}"), "not-verified")

    def _slower(self, outcome: Outcome, trained: Standing) -> Judged:
        """An edit that corrects the size of the steps may make them too small for the present rate."""
        told = replace(outcome, reason=f"run as edited, {trained.text()}")
        if outcome.prescription.treatment not in SLOWER or not trained.learns:
            return Judged(replace(told, status="worse", cured=()))
        if trained.share < KEPT_SHARE:
            return Judged(told, "worse")
        why = f"the edited script was run: it trains, in steps that are smaller, as they are meant to be: {trained.numbers}"
        return Judged(replace(outcome, reason=why))


def _is_to_do_no_harm(fix: Fix, report: Report) -> bool:
    """Whether a cure need not make training better: it is not for an error, or for one that does not show in the losses."""
    errors = any(f.severity == "error" and f.code in fix.findings for f in report.findings)
    return fix.treatment in (*HARMLESS, *SLOWER) or (bool(fix.findings) and not errors)
