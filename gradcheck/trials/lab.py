"""The runs of a trial: for every seed the untreated copy, and treated ones, each trained by itself and measured at its end."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import torch

from gradcheck.remedies.catalogue import apply
from gradcheck.remedies.loss.term_weight import without_balancing
from gradcheck.training.lab import Lab
from gradcheck.training.paired import training_loss
from gradcheck.training.pool import WorkerPool
from gradcheck.training.result import Result, stopped_early, stops_early
from gradcheck.training.skill import predictions, scores, task_of
from gradcheck.training.splits import Splitter
from gradcheck.training.trainer import Trainer, sample_mean
from gradcheck.trials.yardstick import Yardstick, in_untreated_units
from gradcheck.types.fix import Fix
from gradcheck.types.training import Run
from gradcheck.types.trial import Task
from gradcheck.workload.step import make_training_step
from gradcheck.workload.treated import Inapplicable, TreatedWorkload
from gradcheck.workload.workload import TrainingStep, Workload

CHECKPOINTS = 20  # of validation in a run
TIMED_STEPS = 20
SETTLED = 20  # steps before which gradient norms are not counted: the first ones are larger in healthy trainings, too
# Treatments that change what the loss means: they are compared by accuracy or R2, not by loss.
OTHER_LOSS = frozenset(("replace-loss", "flip-sign"))


class Pace(NamedTuple):
    """Seconds of a step and of a validation, and the untrained model's loss."""

    step: float
    validating: float
    start: float


class TrialLab(Lab):
    """Everything that runs of a trial share."""

    splitter: Splitter
    task: Task = "other"
    yardstick: Yardstick | None = None  # in place of the loss, where that cannot say which run is better

    def __init__(self, workload: Workload, splitter: Splitter) -> None:
        super().__init__(workload, apply, splitter)

    @property
    def metric(self) -> str:
        if self.splitter.how == "none":
            return "training loss"
        return self.yardstick.name if self.yardstick is not None else "validation loss"

    def judge(self, seed: int, treated: TreatedWorkload) -> TrainingStep:
        """The user's own loss in its own units, since penalties, smoothed labels and scaled targets are not comparable."""
        base = self.base(seed)
        if self.yardstick is not None:
            return self.yardstick.made(base.workload.training_step)
        own = {p.treatment for p in treated.applied} & OTHER_LOSS
        loss = base.workload.loss
        if loss is None or own:
            return without_balancing(treated.workload.training_step)
        judge = make_training_step(loss)
        return in_untreated_units(judge, base, treated)

    def run(
        self, seed: int, fixes: Sequence[Fix], steps: int, deadline: float = math.inf, watch: Callable[[Trainer], bool] | None = None
    ) -> Result:
        """Trains the treated copy of a seed. `watch(course)` is asked after every validation whether to go on. Raises Inapplicable."""
        treated = self.treated(fixes, seed) if fixes else self.base(seed)
        course = Trainer.of(treated, seed, judge=self.judge(seed, treated))
        self.carry_on(course, steps, deadline, watch)
        return self.measured(course, seed)

    def pace(self, seconds: float) -> Pace:
        """A few steps of the untreated model, for so long at most, and one validation."""
        course = Trainer.of(self.base(0), 0, judge=self.judge(0, self.base(0)))
        course.validate()
        course.train(TIMED_STEPS, deadline=time.perf_counter() + seconds)
        start = course.validated[0][1] if course.validated else course.losses[0] if course.losses else math.nan
        return Pace(course.step_seconds, course.validating, start)

    def carry_on(self, course: Trainer, steps: int, deadline: float, watch: Callable[[Trainer], bool] | None = None) -> None:
        """Trains to so many steps, with a validation at every checkpoint. Rare checkpoints, as at 0.1, 0.2, ... of the way, cost little."""
        every = max(1, steps // CHECKPOINTS)
        if watch is None:
            course.train(steps, deadline=deadline, validate_every=every)
            return
        while course.step < steps and course.ended == "done":
            course.train(min(steps, course.step + every), deadline=deadline, validate_every=every)
            if course.ended == "done" and not watch(course):
                course.ended = "budget"

    def measured(self, course: Trainer, seed: int) -> Result:
        run, treated = course.record(), course.treated
        seconds = course.step_seconds
        if run.ended in ("non-finite", "raised"):
            return Result(run, value=math.inf, step_seconds=seconds)
        sparsity = zeros(treated)
        if not course.parts:
            return Result(run, value=training_loss(run), sparsity=sparsity, step_seconds=seconds)
        parts = settled(course.parts)
        value = sample_mean(parts, treated.workload.val_batches)
        if not math.isfinite(value):
            return Result(run, value=math.inf, step_seconds=seconds)
        result = Result(
            run,
            value=value,
            parts=parts,
            checkpoints=tuple(course.parts),
            scores=self._scores(course, value),
            sparsity=sparsity,
            step_seconds=seconds,
        )
        return self.stopped(result, seed) if stops_early(treated.applied) else result

    def stopped(self, result: Result, seed: int) -> Result:
        """The same run, ended early. Its other scores belong to the last step, and are left out."""
        if result.failed or not result.checkpoints:
            return result
        batches = self.base(seed).workload.val_batches
        parts = stopped_early(result.checkpoints, batches)
        return replace(result, value=sample_mean(parts, batches), parts=parts, scores={})

    def _scores(self, course: Trainer, value: float) -> dict[str, float]:
        """The metrics of the task, and the generalization gap: validation loss less training loss."""
        w = course.treated.workload
        gap = {"generalization gap": value - training_loss(course.record())} if self.yardstick is None else {}
        try:
            with course.evaluating() as model:
                found = predictions(model, w.val_batches) if w.loss is not None else None
            return (scores(self.task, found, value, w) if found is not None else {}) | gap
        except Exception:  # no metric takes the outputs of this model: only the loss is left
            return gap

    def tell_task(self) -> Task:
        """From the untreated model's outputs on the validation batches."""
        course = Trainer.of(self.base(0), 0)
        try:
            with course.evaluating() as model:
                found = predictions(model, course.treated.workload.val_batches)
            self.task = task_of(self.workload, found)
        except Exception:  # the user's own code runs here: then only losses are compared
            self.task = "other"
        return self.task


def settled(checkpoints: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Loss on each validation batch, the mean over the last fifth of the run, since a single step depends on the batch before it."""
    last = checkpoints[-max(1, len(checkpoints) // 5) :]
    return tuple(fmean(losses) for losses in zip(*last, strict=True))


def zeros(treated: TreatedWorkload) -> float | None:
    """Share of exact zeros among the entries of all trainable weights with two axes or more."""
    weights = [p for p in treated.model.parameters() if p.requires_grad and p.dim() >= 2]
    count = sum(p.numel() for p in weights)
    return float(sum(int((p == 0).sum()) for p in weights)) / count if count else None


def spread(run: Run) -> float | None:
    """Largest over median gradient norm after the first steps."""
    norms = [n for n in run.gradient_norms[SETTLED:] if math.isfinite(n)]
    middle = float(torch.tensor(norms, device="cpu").median()) if norms else 0.0
    return max(norms) / middle if middle > 0 else None


class Job(NamedTuple):
    seed: int
    fixes: tuple[Fix, ...]
    steps: int
    deadline: float


class Answer(NamedTuple):
    """`result`, or why there is none; neither if time ran out before the run began."""

    result: Result | None
    failure: str = ""
    inapplicable: bool = False

    @property
    def begun(self) -> bool:
        return self.result is not None or self.inapplicable or bool(self.failure)


def work(lab: TrialLab, job: Job) -> Answer:
    """One run; what applying or training raises is an answer, too."""
    if time.perf_counter() > job.deadline:  # forked processes share one clock
        return Answer(None)
    try:
        return Answer(lab.run(job.seed, job.fixes, job.steps, job.deadline))
    except Inapplicable as error:
        return Answer(None, str(error), True)
    except Exception as error:  # the remedy does not fit the model, or the user's own code raised
        return Answer(None, f"{type(error).__name__}: {error}")


def answers(pool: WorkerPool[TrialLab], jobs: Sequence[Job]) -> Iterator[tuple[int, Answer]]:
    """(position of a job, its answer), as they are done. Jobs that were not begun at their deadline are cut."""
    return pool.map(work, jobs, max((job.deadline for job in jobs), default=0.0))


def pace(pool: WorkerPool[TrialLab], seconds: float) -> Pace:
    """The pace of the slowest worker, while all of them are at work."""
    return max(found for _, found in pool.map(TrialLab.pace, [seconds] * pool.workers, math.inf))
