"""What findings cost: if the probe learned slowly, the user's training is compared with the same training plus a finding's remedy.

Both start from the same weights and take the same steps on the same batches with the same random numbers. Nothing is run where nothing
was found, or where the loss fell well. Where an error says already that it will not, only lesser findings that may be its cause are
tried: one whose remedy alone lets the training learn is what has to be told.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from gradcheck.analysis.convergence import learned_later
from gradcheck.analysis.costs import EARLY, comparable, failed, is_costly, learns_slowly, may_fail_later, saved, trains
from gradcheck.config.settings import Settings
from gradcheck.judge.judge import judge
from gradcheck.measure.checks.without_regularization import DROPOUT, SMOOTHING, Noise, lift, without_penalty
from gradcheck.measure.probe import SMALL_STEP
from gradcheck.measure.session import MeasurePlan, on_copies
from gradcheck.remedies.catalogue import CATALOGUE, apply
from gradcheck.remedies.definition import changes_loss
from gradcheck.training.lab import Lab
from gradcheck.training.trainer import Trainer, sample_mean
from gradcheck.types.checks import Cost
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement, NotMeasured
from gradcheck.types.rule import Rule
from gradcheck.workload.workload import Workload

LONGER = 3  # times the probe's steps
LATEST = 10  # for steps or a decay whose harm may come late, as far as that takes no more than
SECONDS = 3.0
SHARE = 1 / 3  # of the time budget, at most
PAIRS = 2  # that have to agree
MOST_BATCHES = 8  # that a loss is taken over
MOST_CHANGES = 2  # that are tried for one finding
MOST_CAUSES = 2  # that are tried besides an error
UNFAIR = ("larger-batch", "early-stopping", "shuffle-data")  # the pair would not see the same batches

HELD_OUT = 4  # of so many batches one is not trained on, where there are no validation batches

Tick = Callable[[str, float], None]
Losses = tuple[float, float]  # on batches that are trained on, and on others; NaN without any


@dataclass(frozen=True)
class Contrast:
    """What distinguishes the other training of a pair: a remedy, or kinds of regularization taken away."""

    name: str = ""  # none: the training as it is
    remedy: Fix | None = None
    lifted: tuple[str, ...] = ()

    @property
    def regularizes(self) -> bool:
        """Whether it changes how much the training is regularized."""
        return bool(self.lifted) or (self.remedy is not None and self.remedy.stage == "regularization")

    @property
    def key(self) -> str:
        p = self.remedy
        return self.name if p is None else f"{p.treatment}{sorted(p.settings.items())}{p.layers}"


AS_IT_IS = Contrast()
# Findings whose remedies keep the cause, or are not to be applied by gradcheck: the pair is trained without the cause.
CAUSES = {"NORM004": Contrast("without dropout", lifted=(DROPOUT,))}


@dataclass(frozen=True)
class Suspect:
    """A finding, and the changes that the training is compared with, the least invasive first."""

    finding: Finding
    changes: tuple[Contrast, ...]
    errors: tuple[str, ...] = ()  # that it may be the cause of


def with_costs(
    m: Measurement, workload: Workload, plan: MeasurePlan, began: float, rules: Sequence[Rule], settings: Settings, tick: Tick
) -> Measurement:
    """The measurement with what its findings cost, as far as the time of `plan` reaches, which `began` at that perf_counter()."""
    if plan.fast or not plan.probes or not comparable(m):
        return m
    suspects = _suspects(m, rules, settings)
    if not suspects:
        return m
    if workload.borrowed is not None:
        why = f"it takes trainings of copies, and {workload.borrowed.why}"
        return replace(m, not_measured=(*m.not_measured, NotMeasured("what the findings cost", why)))
    pairs = Pairs(workload, m, plan.steps, min(began + plan.seconds, time.perf_counter() + SHARE * plan.seconds), tick)
    with on_copies(workload):
        if m.seconds.get("probe", 0.0) < SMALL_STEP * len(m.probe.losses):
            torch.set_num_threads(1)
        started = time.perf_counter()
        costs = tuple(pairs.costs(suspects))
    return replace(m, costs=costs, seconds={**m.seconds, "costs": time.perf_counter() - started})


def _suspects(m: Measurement, rules: Sequence[Rule], settings: Settings) -> list[Suspect]:
    """Findings that may be made a warning of, with remedies that can be tried; beside errors, those that may be their cause."""
    findings = judge([m], rules, settings)[0]
    errors = tuple(dict.fromkeys(f.code for f in findings if f.severity == "error" and f.cause is None))
    if errors:
        able = {rule.code for rule in rules if rule.up_to == "error" and set(rule.explains).issuperset(errors)}
        heads = [f for f in findings if f.code in able and f.severity == "warning"][:MOST_CAUSES] if failed(m) else []
    else:
        limited = {rule.code for rule in rules if rule.up_to == "info"}
        if learned_later(m) is not None:
            limited.add("OPT002")  # it costs time, which is known already
        tried = [f for f in findings if f.cause is None and f.code not in limited]
        heads = [f for f in tried if learns_slowly(m) or may_fail_later(f) or (f.code in EARLY and f.severity == "warning")]
    return [Suspect(f, changes, errors) for f in heads if (changes := tuple(_changes(f, m))[:MOST_CHANGES])]


def _changes(finding: Finding, m: Measurement) -> Iterator[Contrast]:
    if finding.code in CAUSES:
        yield CAUSES[finding.code]
        return
    for remedy in finding.remedies:
        treatment = CATALOGUE.get(remedy.name)
        if treatment is not None and treatment.apply is not None and treatment.name not in UNFAIR:
            yield from (Contrast(f"with {p.treatment}", p) for p in treatment.propose(finding, m)[:1] if not changes_loss([p]))


class Trained:
    """A copy in training, with a change or as it is, and its losses on the way: on the batches that it is trained on, and on others."""

    def __init__(self, workload: Workload, change: Contrast, seed: int, penalized: bool) -> None:
        fixes = [change.remedy] if change.remedy is not None else []
        self.training = Trainer.of(Lab(workload, apply).treated(fixes, seed), seed)
        lift(self.training.copy, change.lifted)
        own = self.training.treated.workload
        self.step = without_penalty(own.training_step) if penalized else own.training_step
        self.known = {0: self._evaluated()}

    def losses(self, steps: int) -> Losses:
        """After so many steps in all, in evaluation mode; infinite when it diverged, NaN when a step raised."""
        if steps not in self.known:
            self.training.train(steps)
            failed = {"non-finite": math.inf, "raised": math.nan}.get(self.training.ended)
            self.known[steps] = self._evaluated() if failed is None else (failed, failed)
        return self.known[steps]

    def _evaluated(self) -> Losses:
        w = self.training.treated.workload
        with self.training.evaluating() as model, Noise((SMOOTHING,)):
            seen, unseen = ([float(self.step(model, batch)) for batch in batches[:MOST_BATCHES]] for batches in (w.batches, w.val_batches))
        return sample_mean(seen, w.batches[:MOST_BATCHES]), sample_mean(unseen, w.val_batches[:MOST_BATCHES]) if unseen else math.nan


class Pairs:
    """Runs the pairs of trainings, as long as there is time, and trains nothing twice.

    What regularizes less fits the training batches better in any case: that is judged on batches that are not trained on.
    """

    def __init__(self, workload: Workload, m: Measurement, steps: int, deadline: float, tick: Tick) -> None:
        """`steps`: of the probe; fewer make no comparison."""
        self.workload, self.m, self.deadline, self.tick = workload, m, deadline, tick
        self.penalized = m.regularization is not None and m.regularization.penalty is not None
        self.fewest = self.steps = steps
        self.step_seconds = m.probe.seconds / max(1, len(m.probe.losses))
        self.trained: dict[tuple[str, int], Trained] = {}

    def costs(self, suspects: Sequence[Suspect]) -> Iterator[Cost]:
        """Of each finding that could be compared, with the change that saves most."""
        self._hold_out([change for s in suspects for change in s.changes])
        errors = suspects[0].errors
        base = self._begun(any(may_fail_later(s.finding) for s in suspects), longer=not errors)
        if base is None:
            return
        nothing = [self._compared(s.finding, AS_IT_IS, base, base, 1) for s in suspects]
        if trains(nothing[0]):
            yield from nothing
            return
        for suspect in suspects:
            found: list[Cost] = []
            for change in suspect.changes:
                cost = self._cost(suspect.finding, change)
                found += [cost] if cost is not None else []
                if cost is not None and is_costly(cost):
                    break
            if found:
                yield replace(max(found, key=saved), errors=errors)

    def _hold_out(self, changes: Sequence[Contrast]) -> None:
        """Keeps some batches from the training where a change of the regularization asks for it, and there are enough of them."""
        batches = self.workload.batches
        count = min(len(batches) // HELD_OUT, MOST_BATCHES)
        if count and not self.workload.val_batches and any(c.regularizes for c in changes):
            self.workload = replace(self.workload, batches=batches[:-count], val_batches=batches[-count:])

    def _begun(self, late: bool, longer: bool) -> Trained | None:
        """Trains as it is, as far as the probe went; how long that takes says how many steps there is time for. None: for too few.

        `longer`: what the probe did not show may show after it.
        """
        started, base = time.perf_counter(), self._training(AS_IT_IS, 0)
        if base is None or math.isnan(base.losses(self.fewest)[0]):
            return None
        self.step_seconds = (time.perf_counter() - started) / max(1, base.training.step)
        affordable = self.fewest + int((self.deadline - time.perf_counter()) / self.step_seconds) // 2  # of the first pair
        wanted = min(LATEST * self.fewest, int(SECONDS / self.step_seconds)) if late else 0
        self.steps = min(max(LONGER * self.fewest, wanted), affordable) if longer else min(self.fewest, affordable)
        return base if self.steps >= self.fewest and not math.isnan(base.losses(self.steps)[0]) else None

    def _cost(self, finding: Finding, change: Contrast) -> Cost | None:
        """The pair that shows least; only the first if that shows nothing. None when none could be trained."""
        found: Cost | None = None
        for seed in range(PAIRS):
            cost = self._pair(finding, change, seed)
            if cost is None:
                break
            found = cost if found is None or saved(cost) < saved(found) else replace(found, pairs=seed + 1)
            if not is_costly(cost):
                break
        return found

    def _pair(self, finding: Finding, change: Contrast, seed: int) -> Cost | None:
        base, other = self._training(AS_IT_IS, seed), self._training(change, seed)
        if base is None or other is None:
            return None
        cost = self._compared(finding, change, base, other, seed + 1)
        return None if math.isnan(cost.loss) or math.isnan(cost.changed) else cost

    def _compared(self, finding: Finding, change: Contrast, base: Trained, other: Trained, pairs: int) -> Cost:
        held_out, steps = change.regularizes, self.steps
        start, early, loss, changed = (
            run.losses(at)[held_out] for run, at in ((base, 0), (base, self.fewest), (base, steps), (other, steps))
        )
        where = finding.code, finding.layers, finding.location
        return Cost(*where, change.name, steps, start, early, loss, changed, self.m.chance, pairs, held_out)

    def _training(self, change: Contrast, seed: int) -> Trained | None:
        """None when it cannot be made, or when there is no time for it."""
        key = change.key, seed
        if key not in self.trained:
            self.tick(f"what it costs: {change.name or 'the training as it is'}", 0.0)
            if time.perf_counter() + self.steps * self.step_seconds > self.deadline:
                return None
            try:
                self.trained[key] = Trained(self.workload, change, seed, self.penalized)
            except Exception:  # the user's code runs here, and a remedy on a model that nobody thought of
                return None
        return self.trained[key]
