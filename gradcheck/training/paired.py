"""Paired training: copies that differ by a treatment only, trained on the same batches with the same random numbers."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean, median

import torch
from torch import nn

from gradcheck.training.gradient_norms import total_norm
from gradcheck.training.intervals import CONFIDENCE, paired_interval
from gradcheck.training.steps import lr_of, take_step
from gradcheck.types.fix import Effect
from gradcheck.types.training import Run
from gradcheck.workload.rng import preserve_rng, reseed
from gradcheck.workload.tensors import batch_size
from gradcheck.workload.training_copy import TrainingCopy, restored
from gradcheck.workload.training_mode import set_mode
from gradcheck.workload.treated import TreatedWorkload
from gradcheck.workload.workload import Batch, TrainingStep

FEWEST_STEPS = 3  # taken even when time is up
LAST_SHARE = 0.1  # of the steps: their mean is a run's training loss, over every batch equally often where it can be
LARGEST_LOG = 30.0  # of a ratio: beyond it nothing is known
STREAM = 1_000_003  # apart: random numbers of different seeds

Enough = Callable[[list[float]], bool]


class PairedTraining:
    """The training of a copy of a patient, which can be taken further step by step.

    Step k of seed s sees the same batch and the same random numbers (dropout, noise) whatever the patient: two courses differ by
    their treatments only. `judge(model, batch)`: the loss on validation batches; the patient's own training step without it.
    """

    def __init__(self, patient: TreatedWorkload, seed: int, *, judge: TrainingStep | None = None) -> None:
        with preserve_rng():
            self.patient = patient.copy()
        w = self.patient.workload
        self.trainee = TrainingCopy(w.model, w.optimizer, w.training_step, w.sites, w.clip, w.loss)
        self.seed = seed
        self.judge = judge or w.training_step
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.validated: list[tuple[int, float]] = []
        self.parts: list[tuple[float, ...]] = []  # the same, of each validation batch
        self.ended = "done"
        self.error: str | None = None
        self.seconds = 0.0
        self.validating = 0.0  # of these
        self.step_times: list[float] = []

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def step_seconds(self) -> float:
        """The median: a machine with other work slows some steps down, and the first ones are slow anywhere."""
        return median(self.step_times) if self.step_times else 0.0

    @property
    def diverged(self) -> bool:
        return self.ended == "non-finite"

    def train(self, steps: int, *, deadline: float | None = None, validate_every: int | None = None, enough: Enough | None = None) -> None:
        """On to `steps` in all; earlier when time is up, a number is not finite, a step raises, or `enough(losses)` says so."""
        if self.ended == "budget":
            self.ended = "done"
        started = time.perf_counter()
        with preserve_rng():
            while self.step < steps and self.ended == "done":
                if deadline is not None and self.step >= FEWEST_STEPS and time.perf_counter() > deadline:
                    self.ended = "budget"
                    break
                if validate_every and self.step == 0 and not self.validated:
                    self.validate()
                begun = time.perf_counter()
                self._one_step()
                self.step_times.append(time.perf_counter() - begun)
                if validate_every and self.ended == "done" and (self.step % validate_every == 0 or self.step == steps):
                    self.validate()
                if self.ended == "done" and enough is not None and enough(self.losses):
                    self.ended = "learned"
        self.seconds += time.perf_counter() - started

    def _one_step(self) -> None:
        """Seeds, forward, backward, the patient's clipping and its optimizer's step. What the user's code raises ends the course."""
        batch = batch_at(self.patient.workload.batches, self.seed, self.step)
        optimizer = self.trainee.optimizer
        draw = self.seed * STREAM + self.step
        reseed(draw)
        try:
            if self.patient.augmentations:
                batch = self.patient.augment(batch, torch.Generator().manual_seed(draw))
            optimizer.zero_grad(set_to_none=True)
            loss = self.trainee.loss(batch)
            value, norm = float(loss.detach()), 0.0
            if loss.requires_grad:
                loss.backward()
                norm = total_norm(self.trainee.model.parameters())
            finite = math.isfinite(value) and math.isfinite(norm)
            if finite:
                take_step(self.trainee, batch)
        except Exception as error:  # the user's own code runs here: it may raise anything
            self.ended, self.error = "raised", f"{type(error).__name__}: {error}"
            return
        self.losses.append(value)
        self.norms.append(norm)
        if not finite:
            self.ended = "non-finite"

    def validate(self) -> None:
        """Appends (steps taken, loss on the validation batches in evaluation mode). What raises ends the course."""
        started = time.perf_counter()
        batches = self.patient.workload.val_batches
        try:
            with self.evaluating() as model:
                losses = [float(self.judge(model, batch)) for batch in batches]
        except Exception as error:  # the user's own code runs here, too
            self.ended, self.error = "raised", f"{type(error).__name__}: {error}"
            return
        self.validating += time.perf_counter() - started
        if losses:
            self.validated.append((self.step, sample_mean(losses, batches)))
            self.parts.append(tuple(losses))

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model in evaluation mode, without gradients; training goes on afterwards as if nothing had been."""
        with preserve_rng(), restored(self.trainee), torch.no_grad():
            set_mode(self.trainee.model, False)
            reseed(self.seed)
            yield self.trainee.model

    def run(self, name: str = "") -> Run:
        names = [p.treatment for p in self.patient.applied]
        return Run(
            name or " + ".join(names) or "untreated",
            tuple(self.losses),
            tuple(self.norms),
            len(self.patient.workload.batches),
            lr_of(self.trainee.optimizer),
            ended=self.ended,  # type: ignore[arg-type]
            error=self.error,
            seconds=self.seconds,
            validated=tuple(self.validated),
        )


def train(
    patient: TreatedWorkload,
    *,
    steps: int,
    seed: int,
    deadline: float | None = None,
    validate_every: int | None = None,
    enough: Enough | None = None,
    judge: TrainingStep | None = None,
) -> Run:
    """Trains a copy of the patient from its present weights. The patient, and all random states, stay as they are.

    `deadline`: of time.perf_counter(). Raises TargetError when the patient cannot be copied.
    """
    return train_patient(patient, steps=steps, seed=seed, deadline=deadline, validate_every=validate_every, enough=enough, judge=judge)[0]


def train_patient(
    patient: TreatedWorkload,
    *,
    steps: int,
    seed: int,
    deadline: float | None = None,
    validate_every: int | None = None,
    enough: Enough | None = None,
    judge: TrainingStep | None = None,
) -> tuple[Run, TreatedWorkload]:
    """As `train`, and the copy that was trained."""
    course = PairedTraining(patient, seed, judge=judge)
    course.train(steps, deadline=deadline, validate_every=validate_every, enough=enough)
    return course.run(), course.patient


def sample_mean(losses: Sequence[float], batches: Sequence[Batch]) -> float:
    """Mean over the samples of batches from the mean of each."""
    sizes = [batch_size(batch) for batch in batches]
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


def batch_at(batches: Sequence[Batch], seed: int, step: int) -> Batch:
    """The batch of a step: every pass goes over all of them once, in an order of its own."""
    turn, place = divmod(step, len(batches))
    order = list(range(len(batches)))
    random.Random(f"{seed}/{turn}").shuffle(order)
    return batches[order[place]]


def training_loss(run: Run, steps: int | None = None) -> float:
    """Mean over the last tenth of the steps, or over the last pass through the batches if that is longer; infinite when it diverged."""
    if run.ended in ("non-finite", "raised"):
        return math.inf
    losses = run.losses[:steps]
    window = min(max(1, round(LAST_SHARE * len(losses)), run.batches), max(1, len(losses) // 2))
    return fmean(losses[-window:]) if losses else math.nan


def validation_loss(run: Run, steps: int | None = None) -> float:
    """The last one at or before a step; infinite when the run diverged."""
    if run.ended in ("non-finite", "raised"):
        return math.inf
    known = [value for step, value in run.validated if steps is None or step <= steps]
    return known[-1] if known else math.nan


METRICS: dict[str, Callable[[Run, int | None], float]] = {"training loss": training_loss, "validation loss": validation_loss}


def effect(base: Sequence[Run], treated: Sequence[Run], *, metric: str = "training loss", confidence: float = CONFIDENCE) -> Effect:
    """The paired difference of the runs, seed by seed, after as many steps as both of a pair took. Raises ValueError when none are paired.

    `better`: the interval of the difference (95 % as a rule) lies below zero, or most untreated runs diverged and no treated one did.
    """
    pairs = list(zip(base, treated, strict=True))
    value = METRICS[metric]
    lost = ("non-finite", "raised")
    common = [min((len(r.losses) for r in pair if r.ended not in lost), default=0) for pair in pairs]
    before = [value(a, n) for (a, _), n in zip(pairs, common, strict=True)]
    after = [value(b, n) for (_, b), n in zip(pairs, common, strict=True)]
    return paired_effect(before, after, metric=metric, confidence=confidence)


def paired_effect(
    before: Sequence[float],
    after: Sequence[float],
    *,
    metric: str,
    lower_is_better: bool = True,
    confidence: float = CONFIDENCE,
    overlap: float = 0.0,
    sampling_error: float = 0.0,
    ratios: bool = False,
    ceiling: float | None = None,
) -> Effect:
    """The same from a value of each run, seed by seed; infinite (or minus infinite) ones are of runs that diverged.

    `ratios`: positive values are compared by the logarithm of their ratio, since losses of different seeds may lie decades apart; the
    interval is then that of the ratio, applied to the median of the untreated runs. `sampling_error` is that of the difference, or of the
    logarithm of the ratio; for `overlap` see `paired_interval`. `ceiling`: what diverged runs count as in the differences; without it
    nothing but their direction counts.
    """
    if not before or len(before) != len(after):
        raise ValueError(f"{len(before)} untreated and {len(after)} treated runs are no pairs")
    usual = median(before)
    pairs = [tuple(ceiling if ceiling is not None and math.isinf(x) else x for x in pair) for pair in zip(before, after, strict=True)]
    logs = ratios and all(0 < x < math.inf for pair in pairs for x in pair)
    differences = [math.log(b / a) if logs else _difference(a, b) for a, b in pairs]
    interval = paired_interval(differences, confidence=confidence, overlap=overlap, sampling_error=sampling_error)
    shown = [median(differences), interval.low, interval.high]
    level = median(a for a, _ in pairs)
    middle, low, high = (_of_ratio(level, x) for x in shown) if logs else shown
    rescued = sum(map(math.isinf, before)) > len(before) / 2 and all(map(math.isfinite, after))
    good = high < 0 if lower_is_better else low > 0
    return Effect(metric, usual, median(after), middle, low, high, len(before), good or rescued, lower_is_better)


def _of_ratio(usual: float, logarithm: float) -> float:
    """The difference that a ratio comes to. Where nothing is known it is infinite."""
    return usual * math.expm1(logarithm) if logarithm < LARGEST_LOG else math.inf


def _difference(before: float, after: float) -> float:
    return 0.0 if before == after else after - before  # two diverged runs are equally bad
