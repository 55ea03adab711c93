"""Patients made from prescriptions, and what is known of each: nothing is trained or measured twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gradcheck.config.settings import Settings
from gradcheck.errors import GradcheckError
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.repair.performance import WELL, Result, result_of
from gradcheck.repair.rescan import Seen, rescan
from gradcheck.training.trainer import FEWEST_STEPS, Trainer
from gradcheck.types.fix import Fix
from gradcheck.types.report import Report
from gradcheck.workload.rng import preserve_rng, seed_all
from gradcheck.workload.treated import Inapplicable, TreatedWorkload, treated_copy
from gradcheck.workload.workload import Workload

Plan = tuple[Fix, ...]
Tick = Callable[[str, float], None]  # what is done, share of the time that is used

APPLY_SEED = 0  # for treatments that draw weights: the same prescription always draws the same ones
SEARCH_SEEDS = (0, 1)  # on which treatments are chosen
PROOF_SEED = 101  # the first of those on which they are proved
SEEDS_APART = 200  # from those of a second search
PATIENCE = 3  # times the steps, for a training that falls slowly, or may collapse
EXAM_SHARE = 0.05  # of the time: the most that one measurement may take


class TimeUp(Exception):
    """The budget is used up; what is known by now is the result."""


@dataclass(frozen=True)
class RepairOptions:
    """What the user asked for."""

    unsafe: bool = False
    steps: int = 100  # of a training
    seeds: int = 3  # of the proof
    budget: float = 60.0  # seconds for treating and proving, the first scan not counted


@dataclass
class Lab:
    """The workload, the vocabulary, and the patients that were looked at. Its methods raise TimeUp when time is up."""

    workload: Workload
    vocabulary: Mapping[str, RemedyDefinition]
    settings: Settings
    terms: RepairOptions
    tick: Tick
    seen: Seen | None = None
    started: float = field(init=False)
    share: float = 1.0  # of the budget that may be used by now
    stopped: bool = False
    seeds: tuple[int, int] = SEARCH_SEEDS
    proof_seed: int = PROOF_SEED
    courses: dict[tuple[str, int], Trainer] = field(default_factory=dict)
    results: dict[tuple[str, int, int], Result] = field(default_factory=dict)  # with the steps
    reports: dict[str, Report] = field(default_factory=dict)
    steps_taken: int = 0
    seconds_taken: float = 0.0  # by these

    def __post_init__(self) -> None:
        self.started = time.perf_counter()

    @property
    def deadline(self) -> float:
        return self.started + self.share * self.terms.budget

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.perf_counter()

    def stop(self) -> None:
        """From now on nothing is tried any more: what is known is the result."""
        self.stopped = True

    def check(self, what: str) -> None:
        if self.stopped or self.left() <= 0:
            raise TimeUp
        self.tick(what, (time.perf_counter() - self.started) / self.terms.budget)

    def patient(self, plan: Sequence[Fix]) -> TreatedWorkload:
        """A fresh copy of the workload, treated. Raises Inapplicable, and GradcheckError for a treatment that fails."""
        with preserve_rng():
            patient = treated_copy(self.workload)
            for prescription in plan:
                seed_all(APPLY_SEED)
                self._apply(patient, prescription)
        return patient

    def _apply(self, patient: TreatedWorkload, prescription: Fix) -> None:
        apply = self.vocabulary[prescription.treatment].apply
        if apply is None:
            raise Inapplicable("it has no edit")
        try:
            apply(patient, prescription)
        except (Inapplicable, GradcheckError):
            raise
        except Exception as error:  # a model of a kind that nobody thought of: this treatment is out, the others go on
            raise Inapplicable(f"{type(error).__name__}: {error}") from error
        if prescription not in patient.applied:
            patient.applied.append(prescription)

    def relative(self, plan: Sequence[Fix], reference: float, steps: int | None = None) -> float:
        """The loss in units of `reference`; of a plan that trains well, the worst of two seeds, and of a longer training.

        Luck does not come twice, and what a rate or a decay ruins may look well at first.
        """
        one, other = self.seeds
        worst = self.train(plan, steps, one).relative(reference)
        for more, seed in ((steps, other), (max(steps or 0, PATIENCE * self.terms.steps), one)):
            if worst > WELL:
                break
            worst = max(worst, self.train(plan, more, seed).relative(reference))
        return worst

    def reseed(self) -> None:
        """From now on treatments are chosen and proved on other seeds."""
        self.seeds = (self.seeds[0] + SEEDS_APART, self.seeds[1] + SEEDS_APART)
        self.proof_seed += SEEDS_APART

    def train(self, plan: Sequence[Fix], steps: int | None = None, seed: int | None = None) -> Result:
        """After so many steps in all; a course that was begun is taken further. `seed`: the first of the search when None."""
        steps, seed = steps or self.terms.steps, self.seeds[0] if seed is None else seed
        key = signature(plan), seed
        if (*key, steps) not in self.results:
            self.check("training " + words(plan))
            course = self.courses.get(key)
            if course is None or course.step > steps:
                course = self.courses[key] = Trainer.of(self.patient(plan), seed)
            began, at = time.perf_counter(), course.step
            course.train(steps, deadline=self.deadline)
            self.steps_taken += course.step - at
            self.seconds_taken += time.perf_counter() - began
            if course.ended == "budget":
                raise TimeUp
            self.results[*key, steps] = result_of(course, plan)
        return self.results[*key, steps]

    def share_before(self, steps: int) -> float:
        """The share of the budget that is left when what so many steps take is put aside."""
        return 1 - steps * self.seconds_taken / max(1, self.steps_taken) / self.terms.budget

    def known(self, plan: Sequence[Fix]) -> Result:
        """As far as the plan was trained before time was up, three steps at least."""
        seed = self.seeds[0]
        course = self.courses.get((signature(plan), seed)) or Trainer.of(self.patient(plan), seed)
        course.train(max(course.step, FEWEST_STEPS))
        return result_of(course, plan)

    def forget(self, plan: Sequence[Fix]) -> None:
        """Frees what a course that will not be taken further holds."""
        for key in [k for k in self.courses if k[0] == signature(plan)]:
            del self.courses[key]

    def exam(self, plan: Sequence[Fix], codes: Collection[str] | None = None) -> Report:
        """What a scan says of the treated workload; with `codes`, of these rules alone."""
        key = signature(plan) + ("" if codes is None else " " + ",".join(sorted(codes)))
        if key not in self.reports:
            self.check("measuring " + words(plan))
            seconds = min(self.left(), EXAM_SHARE * self.terms.budget)
            self.reports[key] = rescan(self.patient(plan), self.settings, seconds, self.seen, codes)
        return self.reports[key]


def signature(plan: Sequence[Fix]) -> str:
    return "|".join(f"{p.treatment}{sorted(p.settings.items())}{p.layers}" for p in plan)


def words(plan: Sequence[Fix]) -> str:
    return " + ".join(p.treatment for p in plan) or "the untreated model"
