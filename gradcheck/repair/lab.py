"""Treated copies of a workload within a budget, and what is known about each: nothing is trained or measured twice."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from gradcheck.config.settings import Settings
from gradcheck.errors import GradcheckError
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.repair.options import RepairOptions
from gradcheck.repair.rescan import WELL, Seen, rescan, result_of
from gradcheck.training.lab import Lab
from gradcheck.training.result import Result
from gradcheck.training.trainer import FEWEST_STEPS, Trainer
from gradcheck.types.fix import Fix
from gradcheck.types.report import Report
from gradcheck.workload.treated import Inapplicable, TreatedWorkload
from gradcheck.workload.workload import Workload

Plan = tuple[Fix, ...]
Tick = Callable[[str, float], None]  # what is done, share of the time that is used

SEARCH_SEEDS = (0, 1)  # on which remedies are chosen
PROOF_SEED = 101  # the first of those on which they are proved
SEEDS_APART = 200  # from those of a second search
PATIENCE = 3  # times the steps, for a loss that falls slowly or may collapse
RESCAN_SHARE = 0.05  # of the time: the most that one measurement may take


class TimeUp(Exception):
    """The budget is used up; what is known by now is the result."""


class RepairLab(Lab):
    """The workload, the catalogue, and what is known about each treated copy. Methods raise TimeUp once the budget is used up."""

    def __init__(
        self,
        workload: Workload,
        catalogue: Mapping[str, RemedyDefinition],
        settings: Settings,
        options: RepairOptions,
        tick: Tick,
        seen: Seen | None = None,
    ) -> None:
        super().__init__(workload, self._put_in)
        self.catalogue, self.settings, self.options = catalogue, settings, options
        self.tick, self.seen = tick, seen
        self.started = time.perf_counter()
        self.share = 1.0  # of the budget that may be used by now
        self.stopped = False
        self.seeds, self.proof_seed = SEARCH_SEEDS, PROOF_SEED
        self.trainings: dict[tuple[str, int], Trainer] = {}
        self.results: dict[tuple[str, int, int], Result] = {}  # with the steps
        self.reports: dict[str, Report] = {}
        self.steps_taken = 0
        self.seconds_taken = 0.0  # by these

    @property
    def deadline(self) -> float:
        return self.started + self.share * self.options.budget

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.perf_counter()

    def stop(self) -> None:
        """Stops the search: what is known by now is the result."""
        self.stopped = True

    def check(self, what: str) -> None:
        if self.stopped or self.left() <= 0:
            raise TimeUp
        self.tick(what, (time.perf_counter() - self.started) / self.options.budget)

    def _put_in(self, treated: TreatedWorkload, fix: Fix) -> None:
        apply = self.catalogue[fix.treatment].apply
        if apply is None:
            raise Inapplicable("it has no edit")
        try:
            apply(treated, fix)
        except (Inapplicable, GradcheckError):
            raise
        except Exception as error:  # the remedy does not fit this model; the others go on
            raise Inapplicable(f"{type(error).__name__}: {error}") from error
        if fix not in treated.applied:
            treated.applied.append(fix)

    def relative(self, plan: Sequence[Fix], reference: float, steps: int | None = None) -> float:
        """The loss in units of `reference`; for a plan that trains well, the worst of two seeds and of a longer training. One lucky seed
        does not count, and damage by a rate or a decay may show only later.
        """
        one, other = self.seeds
        worst = self.train(plan, steps, one).relative(reference)
        for more, seed in ((steps, other), (max(steps or 0, PATIENCE * self.options.steps), one)):
            if worst > WELL:
                break
            worst = max(worst, self.train(plan, more, seed).relative(reference))
        return worst

    def reseed(self) -> None:
        """Switches to other seeds, on which remedies are chosen and verified from here on."""
        self.seeds = (self.seeds[0] + SEEDS_APART, self.seeds[1] + SEEDS_APART)
        self.proof_seed += SEEDS_APART

    def train(self, plan: Sequence[Fix], steps: int | None = None, seed: int | None = None) -> Result:
        """The training after `steps` steps in all; one that has begun is continued. `seed`: the first of the search when None."""
        steps, seed = steps or self.options.steps, self.seeds[0] if seed is None else seed
        key = signature(plan), seed
        if (*key, steps) not in self.results:
            self.check("training " + words(plan))
            training = self.trainings.get(key)
            if training is None or training.step > steps:
                training = self.trainings[key] = Trainer.of(self.treated(plan), seed)
            began, at = time.perf_counter(), training.step
            training.train(steps, self.deadline)
            self.steps_taken += training.step - at
            self.seconds_taken += time.perf_counter() - began
            if training.ended == "budget":
                raise TimeUp
            self.results[*key, steps] = result_of(training, plan)
        return self.results[*key, steps]

    def share_before(self, steps: int) -> float:
        """The share of the budget that would be left after a training of so many steps."""
        return 1 - steps * self.seconds_taken / max(1, self.steps_taken) / self.options.budget

    def known(self, plan: Sequence[Fix]) -> Result:
        """The training as far as it got before time ran out; at least three steps."""
        seed = self.seeds[0]
        training = self.trainings.get((signature(plan), seed)) or Trainer.of(self.treated(plan), seed)
        training.train(max(training.step, FEWEST_STEPS))
        return result_of(training, plan)

    def forget(self, plan: Sequence[Fix]) -> None:
        """Frees the memory of a training that will not be continued."""
        for key in [k for k in self.trainings if k[0] == signature(plan)]:
            del self.trainings[key]

    def rescan(self, plan: Sequence[Fix], codes: Collection[str] | None = None) -> Report:
        """What a scan says of the treated workload; with `codes`, only by these rules."""
        key = signature(plan) + ("" if codes is None else " " + ",".join(sorted(codes)))
        if key not in self.reports:
            self.check("measuring " + words(plan))
            seconds = min(self.left(), RESCAN_SHARE * self.options.budget)
            self.reports[key] = rescan(self.treated(plan), self.settings, seconds, self.seen, codes)
        return self.reports[key]


def signature(plan: Sequence[Fix]) -> str:
    return "|".join(f"{p.treatment}{sorted(p.settings.items())}{p.layers}" for p in plan)


def words(plan: Sequence[Fix]) -> str:
    return " + ".join(p.treatment for p in plan) or "the untreated model"
