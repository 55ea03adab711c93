"""Remedies are tried one after another on a copy; each is kept only if it helps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

from gradcheck.analysis.convergence import training_outcome
from gradcheck.errors import GradcheckError
from gradcheck.repair.lab import PATIENCE, Plan, RepairLab, TimeUp, signature
from gradcheck.repair.plan import LOWER, RAISE, allowed, fixes_for, rate_treatment, refused, without_rate
from gradcheck.repair.rescan import WELL, faulty, severities, worsened
from gradcheck.repair.search import CLEAR, SLOW, RemedySearch
from gradcheck.training.result import Result
from gradcheck.types.fix import TIME_WAS_UP, Fix, Outcome, OutcomeStatus
from gradcheck.types.report import Report
from gradcheck.workload.treated import Inapplicable

ROUNDS = 3  # rounds of measuring and treating: repaired wiring reveals what lay behind it
WORSE = 0.02  # of the start loss, or of the loss of chance: a rise that counts (SCIENCE 4)
ABOUT_RATES = (LOWER, RAISE, "warm-up", "clip-gradient-norm")
SPARED = "what it is for is gone without it"
PUT_OFF = "the model does not begin to learn with it"
LONG_SHARE = 0.7  # of the budget: must be left when long trainings are set aside
FINDINGS_SHARE, SEARCH_SHARE, PRUNING_SHARE, SECOND_SHARE = 0.4, 0.7, 0.85, 0.8  # of the budget, after which the next phase begins


@dataclass
class RepairSession:
    """What was tried on a lab's workload. `base`: what a scan says of it untreated."""

    lab: RepairLab
    base: Report
    kept: Plan = ()
    outcomes: dict[str, Outcome] = field(default_factory=dict)  # by signature: what was tried and not kept
    interrupted: bool = False
    hopeful: bool = False  # the search found something that trains
    dropped: list[Outcome] = field(default_factory=list)  # in the proof
    proposed: list[float] = field(default_factory=list)  # rates that findings ask for, and that the search is to try
    searched: bool = False  # beyond what findings ask for
    longer_runs: bool = False  # the loss of what is kept falls slowly, so it must be trained for longer to be judged

    @property
    def steps(self) -> int:
        """Of the trainings that prune and prove."""
        return self.lab.options.steps * (PATIENCE if self.longer_runs else 1)

    @property
    def reference(self) -> float:
        """The loss of the best constant prediction; if that is unknown, the loss at the start."""
        m = self.base.measurement
        if m.chance is not None and m.chance > 0:
            return m.chance
        return abs(m.probe.losses[0]) if m.probe.losses else 1.0

    @property
    def learns(self) -> bool:
        return training_outcome(self.base.measurement) == "learns"

    def need(self) -> Literal["none", "rate", "everything"]:
        """What is to be searched, whatever the findings say: everything where the untreated model has not begun to learn; the rate where
        it learns, does not come far, and the scan has something to say about its rate."""
        m = self.base.measurement
        if m.pretrained or m.optimizer.warming_up or not m.data.given:
            return "none"
        if not self.learns:
            return "everything"
        relative = self.lab.train(()).relative(self.reference)
        if WELL < relative <= SLOW:  # it may begin to learn, and collapse
            relative = self.lab.train((), PATIENCE * self.lab.options.steps).relative(self.reference)
            self.longer_runs = self.longer_runs or relative > SLOW
        if relative > SLOW:
            return "everything"
        hinted = any(r.name in ABOUT_RATES for f in self.base.findings for r in f.remedies)
        return "rate" if relative > WELL and hinted else "none"

    def run(self) -> None:
        """Raises KeyboardInterrupt as it comes: what was kept until then stays."""
        try:
            self.lab.share = FINDINGS_SHARE
            self._by_findings()
        except TimeUp:
            pass
        try:
            self.lab.share = SEARCH_SHARE
            self._in_general()
        except TimeUp:
            pass
        try:
            self.longer_runs = self.longer_runs or (self.hopeful and self._affords_patience())
            proof = self.lab.share_before(2 * self.lab.options.seeds * self.steps)
            self.lab.share = min(PRUNING_SHARE, proof)
            self.prune()
        except TimeUp:
            pass

    def _affords_patience(self) -> bool:
        """Whether there is time to prune and to verify in long trainings, which show that what was found does not collapse."""
        trainings = 2 * (self.lab.options.seeds + len(self.kept))
        return self.lab.share_before(trainings * PATIENCE * self.lab.options.steps) > LONG_SHARE

    # ------------------------------------------------------------- what findings ask for

    def _by_findings(self) -> None:
        for number in range(ROUNDS):
            report = self.base if not self.kept else self.lab.rescan(self.kept)
            found = faulty(report)
            if not number:
                found = tuple(f for f in found if f.cause is None) or found
            wanted = fixes_for(found, report.measurement, self.lab.catalogue)
            for outcome in refused(wanted, self.lab.options.unsafe):
                self._note(outcome)
            before = self.kept
            self._try_all(allowed(wanted, self.lab.options.unsafe), {f.code for f in found})
            if number and self.kept == before:
                return

    def _try_all(self, wanted: Sequence[Fix], ill: set[str]) -> None:
        for fix in wanted:
            if signature([fix]) in self.outcomes or fix in self.kept:
                continue
            aims = [code for code in fix.findings if code in ill]
            if not aims:
                self._note(Outcome(fix, "not-needed", SPARED))
                continue
            try:
                ill -= self._attempt(fix)
            except TimeUp:
                self._note(Outcome(fix, "untried", TIME_WAS_UP))
                raise

    def _attempt(self, fix: Fix) -> set[str]:
        """Keeps the fix if it makes its findings go away, or the training better. Returns the codes that are gone."""
        plan = self._with(fix)
        before = self.lab.train(self.kept)
        try:
            after = self.lab.train(plan)
            gain = self.gain(before, after)
            if self._left_to_search(fix, before, after):
                return self._put_off(fix)
            if -math.inf < gain < -WORSE and before.comparable:
                gain = self._later_gain(plan)
            gone = set() if gain < -WORSE else self._gone(plan, fix.findings)
        except Inapplicable as reason:
            self._note(Outcome(fix, "inapplicable", str(reason)))
            return set()
        except GradcheckError as error:
            self._note(Outcome(fix, "failed", error.message))
            return set()
        if gain >= CLEAR or (gone and gain >= -WORSE):
            self._replace(plan, "a later one takes its place")
            return gone
        self._note(_rejected(fix, before, after, gain))
        return set()

    def _left_to_search(self, fix: Fix, *results: Result) -> bool:
        """Whether it is a rate at which nothing begins to learn, in a session that will search for others."""
        is_rate = fix.treatment in (LOWER, RAISE) and not self.searched
        return is_rate and min(r.relative(self.reference) for r in results) > SLOW and self.need() == "everything"

    def _put_off(self, fix: Fix) -> set[str]:
        """The model does not learn with this rate either: the search, which begins with rates, will try it among others."""
        self.proposed.append(float(fix.settings["lr"]))
        self._note(Outcome(fix, "not-verified", PUT_OFF))
        return set()

    def _with(self, fix: Fix) -> Plan:
        """The kept fixes and this one. It replaces an earlier one of its kind; a new rate then also answers the findings of the old one."""
        if fix.treatment not in (LOWER, RAISE):
            return (*(p for p in self.kept if not _same_kind(p, fix)), fix)
        rest = without_rate(self.kept)
        codes = [code for p in self.kept if p not in rest for code in p.findings]
        name = rate_treatment(self.base.measurement.optimizer.lr, float(fix.settings["lr"]))
        return (*rest, replace(fix, treatment=name, findings=tuple(dict.fromkeys((*codes, *fix.findings)))))

    def _replace(self, plan: Plan, reason: str) -> None:
        """Keeps the plan; fixes that are no longer in it were not needed."""
        gone, self.kept = [p for p in self.kept if p not in plan], plan
        for fix in plan:  # one that was put off, and that the search brought back
            self.outcomes.pop(signature([fix]), None)
        for fix in gone:
            self._note(Outcome(fix, "not-needed", reason))

    def _later_gain(self, plan: Plan) -> float:
        """The later effect of a remedy that slows the first steps, as a warm-up does."""
        longer = PATIENCE * self.lab.options.steps
        gain = self.gain(self.lab.train(self.kept, longer), self.lab.train(plan, longer))
        self.longer_runs = self.longer_runs or gain >= -WORSE
        return gain

    def _gone(self, plan: Plan, codes: Sequence[str]) -> set[str]:
        left = severities(self.lab.rescan(plan, codes))
        return {code for code in codes if code not in left}

    def gain(self, before: Result, after: Result) -> float:
        """How much the loss fell, in units of the loss of chance; infinite for runs that diverge."""
        a, b = before.skill, after.skill
        if not (before.comparable and after.comparable) and a is not None and b is not None and not (before.failed or after.failed):
            return a.relative - b.relative
        old, new = before.relative(self.reference), after.relative(self.reference)
        return 0.0 if old == new else old - new

    # ------------------------------------------------------------- what may help besides

    def _in_general(self) -> None:
        """A search when the model still does not train well."""
        need = self.need()
        if need == "none":
            return
        search = RemedySearch(self.lab, self.base.measurement, self.reference, self.kept, need == "rate", tuple(self.proposed))
        try:
            search.run()
        finally:
            self.searched, self.hopeful = True, search.steps > 0
            if self.hopeful or need == "everything":  # another rate alone must make it train
                self.longer_runs = self.longer_runs or max(search.steps, search.horizon) > self.lab.options.steps
                if search.best != self.kept and math.isfinite(search.relative):
                    self._replace(search.best, "the model trains better with others in its place")

    def second_choice(self) -> bool:
        """Tries what was spared because of something that did not hold in the proof, and rates that were left to a search which came to
        nothing: training does at least not break up with them. Whether anything came of it."""
        before = self.kept
        refuted = {code for o in self.dropped for code in o.prescription.findings}
        cured = {code for p in self.kept for code in p.findings}
        asked = {
            key: o
            for key, o in self.outcomes.items()
            if (o.reason == SPARED and refuted & set(o.prescription.findings))
            or (o.reason == PUT_OFF and not self.hopeful and set(o.prescription.findings) - cured)
        }
        for key in asked:
            del self.outcomes[key]
        self.lab.share = SECOND_SHARE
        try:
            if asked:
                self._by_findings()
        except TimeUp:
            pass
        for key, outcome in asked.items():  # what did not come up again is reported as it was
            if outcome.prescription not in self.kept:
                self.outcomes.setdefault(key, outcome)
        return self.kept != before

    def again(self) -> bool:
        """A second search, on other seeds, when what is kept did not train in the verification. Returns whether anything came of it."""
        before = self.kept
        self.lab.share = SECOND_SHARE
        try:
            if not self.hopeful or self.trains_in_proof():
                return False
            self.lab.reseed()
            self._in_general()
        except TimeUp:
            pass
        for fix in self.kept:
            self.outcomes.pop(signature([fix]), None)
        return self.kept != before

    def trains_in_proof(self) -> bool:
        seeds = range(self.lab.proof_seed, self.lab.proof_seed + self.lab.options.seeds)
        return median(self.lab.train(self.kept, self.steps, seed).relative(self.reference) for seed in seeds) <= WELL

    # -------------------------------------------------------------- the smallest set

    def prune(self) -> None:
        """Drops, one at a time, fixes that the others do not need: changes of the architecture first, the latest before the earliest."""
        if len(self.kept) < 2:
            return
        whole, dropped = self.kept, self._pruned(self._trains_as_well)
        if dropped and self._comes_back(whole, self.kept):
            self.kept = whole
            dropped = self._pruned(lambda now, rest: self._trains_as_well(now, rest) and not self._comes_back(now, rest))
        for fix in dropped:
            self._note(Outcome(fix, "not-needed", "the others cure without it"))

    def _pruned(self, spared: Callable[[Plan, Plan], bool]) -> list[Fix]:
        """What was dropped, since the rest `spared` it."""
        dropped = []
        for fix in sorted(self.kept, key=lambda p: (p.applicability == "safe", -self.kept.index(p))):
            rest = tuple(p for p in self.kept if p is not fix)
            if rest and spared(self.kept, rest):
                self.kept = rest
                dropped.append(fix)
        return dropped

    def _trains_as_well(self, plan: Plan, rest: Plan) -> bool:
        try:
            without = self.lab.train(rest, self.steps)
        except (Inapplicable, GradcheckError):
            return False
        whole = self.lab.train(plan, self.steps)
        well = whole.relative(self.reference) <= WELL
        return self.gain(without, whole) < CLEAR and not (well and without.relative(self.reference) > WELL)

    def _comes_back(self, plan: Plan, rest: Plan) -> bool:
        """Whether a finding that the plan cures returns with the rest of the plan."""
        now, then = severities(self.lab.rescan(plan)), severities(self.lab.rescan(rest))
        return bool(set(then) - set(now)) or bool(worsened(now, then))

    def drop(self, fix: Fix, status: OutcomeStatus, reason: str) -> None:
        self.kept = tuple(p for p in self.kept if p is not fix)
        self.dropped.append(Outcome(fix, status, reason))
        self._note(self.dropped[-1])

    def _note(self, outcome: Outcome) -> None:
        self.outcomes[signature([outcome.prescription])] = outcome


def _same_kind(one: Fix, other: Fix) -> bool:
    """Whether only the later one of the two would count: the same treatment of the same layers."""
    return (one.treatment, one.layers) == (other.treatment, other.layers)


def _rejected(fix: Fix, before: Result, after: Result, gain: float) -> Outcome:
    if after.run.ended == "raised":
        return Outcome(fix, "failed", f"the training step raised {after.run.error}")
    worse = gain < -WORSE
    reason = "the training gets worse with it" if worse else "its findings stay, and the training is no better"
    return Outcome(fix, "worse" if worse else "not-verified", reason, base=(before.run,), treated=(after.run,))
