"""Trains a copy with the user's optimizer until the steps or the time are used up."""

from __future__ import annotations

import inspect
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any

import torch
from torch import nn

from gradcheck.instrument.graph_structure import release_graphs
from gradcheck.training.clip import clip_gradients, total_norm
from gradcheck.types.training import Run
from gradcheck.workload.lockstep import OutOfStep, agreed, now
from gradcheck.workload.rng import preserve_rng, reseed
from gradcheck.workload.tensors import batch_size
from gradcheck.workload.training_copy import TrainingCopy, restored, set_mode
from gradcheck.workload.treated import TreatedWorkload
from gradcheck.workload.workload import Batch, TrainingStep

FEWEST_STEPS = 3  # of a training whose time is over
STREAM = 1_000_003  # distance between the random numbers of different seeds

Enough = Callable[[list[float]], bool]
Observe = Callable[[int, Any], float]


class Trainer:
    """A training of a copy that can be continued.

    Without a seed it runs like the user's loop: the batches in turn, random numbers as they come. With one, step k sees the same batch and
    the same random numbers (dropout, noise) whatever was changed: two trainings with the same seed differ only by their treatments, and the
    random state of the process stays as it was.
    """

    def __init__(
        self,
        copy: TrainingCopy,
        batches: Sequence[Batch],
        *,
        seed: int | None = None,
        treated: TreatedWorkload | None = None,
        judge: TrainingStep | None = None,
        surrogate: str = "",
        floor: float = 0.0,
    ) -> None:
        """`treated`: what the copy belongs to, for augmentations and validation batches. `judge(model, batch)`: the loss on the latter; the
        copy's own training step without it. `surrogate`, `floor`: see Run."""
        self.copy, self.batches, self.seed = copy, batches, seed
        self.judge = judge or copy.training_step
        self.surrogate, self.floor = surrogate, floor
        self._treated = treated
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.validated: list[tuple[int, float]] = []
        self.parts: list[tuple[float, ...]] = []  # the same, of each validation batch
        self.ended = "done"
        self.error: str | None = None
        self.exception: Exception | None = None
        self.started = now()
        self.seconds = 0.0
        self.validating = 0.0  # of these
        self.step_times: list[float] = []

    @classmethod
    def of(cls, treated: TreatedWorkload, seed: int, judge: TrainingStep | None = None) -> Trainer:
        """A trainer of a copy of a treated workload, from its present weights. Raises TargetError when it cannot be copied."""
        with preserve_rng():
            own = treated.copy()
        w = own.workload
        copy = TrainingCopy(w.model, w.optimizer, w.training_step, w.sites, w.clip, w.loss)
        return cls(copy, w.batches, seed=seed, treated=own, judge=judge)

    @property
    def treated(self) -> TreatedWorkload:
        """What is trained, with its data and treatments."""
        assert self._treated is not None
        return self._treated

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def step_seconds(self) -> float:
        """The median: other work on the machine slows some steps down, and the first ones are always slow."""
        return agreed(median(self.step_times)) if self.step_times else 0.0

    def train(
        self,
        steps: int,
        deadline: float = math.inf,
        *,
        measured: Collection[int] = (),
        observe: Observe | None = None,
        norms: bool = True,
        validate_every: int | None = None,
        enough: Enough | None = None,
        tick: Callable[[int], None] | None = None,
    ) -> None:
        """Trains up to `steps` in all; stops earlier when time is up, a number is not finite, a step raises, or `enough(losses)` is true.

        `deadline`: of lockstep.now(). `observe(step, batch)` takes the steps in `measured`, and returns the loss before each.
        """
        if self.ended == "budget":
            self.ended = "done"
        begun = time.perf_counter()
        with preserve_rng() if self.seed is not None else nullcontext():
            while self.step < steps and self.ended == "done":
                if self._is_late(deadline):
                    self.ended = "budget"
                    break
                if validate_every and not self.step and not self.validated:
                    self.validate()
                self._take(observe if self.step in measured else None, norms)
                if self.ended == "raised":
                    break
                if validate_every and self.ended == "done" and (self.step % validate_every == 0 or self.step == steps):
                    self.validate()
                if self.ended == "done" and enough is not None and enough(self.losses):
                    self.ended = "learned"
                if tick is not None:
                    tick(self.step - 1)
        self.seconds += time.perf_counter() - begun

    def _is_late(self, deadline: float) -> bool:
        """At least three steps are taken, unless a single one takes as long as all of them should."""
        over, given = now() - deadline, deadline - self.started
        return over > 0 and self.step >= (1 if 0 < given < over else FEWEST_STEPS)

    def _take(self, observe: Observe | None, norms: bool) -> None:
        """One step. What the user's code raises ends the training."""
        begun = time.perf_counter()
        try:
            batch = self._next_batch()
            loss = observe(self.step, batch) if observe is not None else self.take_step(batch, norms)
        except OutOfStep:
            raise
        except Exception as error:  # the user's own code runs here: it may raise anything
            self._raised(error)
            return
        release_graphs()
        self.losses.append(loss)
        if not math.isfinite(loss) or (self.norms and not math.isfinite(self.norms[-1])):
            self.ended = "non-finite"
        self.step_times.append(time.perf_counter() - begun)

    def _next_batch(self) -> Batch:
        if self.seed is None:
            return self.batches[self.step % len(self.batches)]
        batch = batch_at(self.batches, self.seed, self.step)
        draw = self.seed * STREAM + self.step
        reseed(draw)
        if self._treated is not None and self._treated.augmentations:
            return self._treated.augment(batch, torch.Generator().manual_seed(draw))
        return batch

    def take_step(self, batch: Batch, norms: bool = True) -> float:
        """One step as the user would take it. Returns the loss before it. A paired training keeps the weights at which it breaks down."""
        copy = self.copy
        copy.optimizer.zero_grad(set_to_none=True)
        loss = copy.loss(batch)
        before, norm = loss.detach().clone(), 0.0  # read after the backward pass, so as not to wait for the device in the middle
        if loss.requires_grad:
            loss.backward()
            norm = total_norm(copy.model.parameters()) if norms else 0.0
        value = agreed(float(before))
        if norms:
            self.norms.append(norm)
        if self.seed is None or (math.isfinite(value) and math.isfinite(norm)):
            take_step(copy, batch)
        return value

    def _raised(self, error: Exception) -> None:
        self.ended, self.error, self.exception = "raised", f"{type(error).__name__}: {error}", error

    def validate(self) -> None:
        """Appends (steps taken, loss on the validation batches in evaluation mode). What raises ends the training."""
        begun, batches = time.perf_counter(), self.treated.workload.val_batches
        try:
            with self.evaluating() as model:
                losses = agreed([float(self.judge(model, batch)) for batch in batches])
        except OutOfStep:
            raise
        except Exception as error:  # the user's own code runs here, too
            self._raised(error)
            return
        self.validating += time.perf_counter() - begun
        if losses:
            self.validated.append((self.step, sample_mean(losses, batches)))
            self.parts.append(tuple(losses))

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model in evaluation mode, without gradients; training continues afterwards as if nothing had happened."""
        with preserve_rng(), restored(self.copy), torch.no_grad():
            set_mode(self.copy.model, False)
            reseed(self.seed or 0)
            yield self.copy.model

    def record(self, name: str = "", **more: Any) -> Run:
        """The training so far. `name`: by default, the treatments."""
        names = [fix.treatment for fix in self._treated.applied] if self._treated is not None else []
        return Run(
            name or " + ".join(names) or "untreated",
            tuple(self.losses),
            tuple(self.norms),
            len(self.batches),
            lr_of(self.copy.optimizer),
            ended=self.ended,  # type: ignore[arg-type]
            error=self.error,
            surrogate=self.surrogate,
            floor=self.floor,
            seconds=agreed(self.seconds),
            validated=tuple(self.validated),
            **more,
        )


def batch_at(batches: Sequence[Batch], seed: int, step: int) -> Batch:
    """The batch of a step: every pass goes over all of them once, in its own order."""
    turn, place = divmod(step, len(batches))
    order = list(range(len(batches)))
    random.Random(f"{seed}/{turn}").shuffle(order)
    return batches[order[place]]


def sample_mean(losses: Sequence[float], batches: Sequence[Batch]) -> float:
    """Mean over the samples of batches from the mean of each."""
    sizes = [batch_size(batch) for batch in batches]
    return sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)


def take_step(copy: TrainingCopy, batch: Any) -> None:
    """The optimizer's step; with a closure for optimizers that evaluate the loss themselves (LBFGS)."""
    if not needs_closure(copy.optimizer):
        clip_gradients(copy.clip, copy.model)
        copy.optimizer.step()
        return

    def closure() -> torch.Tensor:
        copy.optimizer.zero_grad(set_to_none=True)
        loss = copy.loss(batch)
        if loss.requires_grad:
            loss.backward()
            clip_gradients(copy.clip, copy.model)
        return loss

    copy.optimizer.step(closure)  # type: ignore[arg-type]


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    parameter = inspect.signature(type(optimizer).step).parameters.get("closure")
    return isinstance(optimizer, torch.optim.LBFGS) or (parameter is not None and parameter.default is inspect.Parameter.empty)


def lr_of(optimizer: torch.optim.Optimizer) -> float | None:
    value = optimizer.param_groups[0].get("lr") if optimizer.param_groups else None
    return float(value) if value is not None else None
