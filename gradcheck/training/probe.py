"""A short training of a copy with the user's own optimizer, measured on a schedule."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradcheck.training.gradient_norms import total_norm
from gradcheck.training.steps import lr_of, take_step
from gradcheck.types.training import Run
from gradcheck.workload.training_copy import TrainingCopy

EARLY = (0, 1, 3, 10, 30, 100, 300, 1000)  # measured steps before the last ones
FEWEST = 3  # steps of a training whose time is over
FINAL_STEPS = 4  # measured steps at the end: dead units are told by what several batches never wake


@dataclass
class Training:
    """A training in progress. `observe(step, batch)` takes a measured step and returns its loss."""

    trainee: TrainingCopy
    batches: Sequence[Any]
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    ended: str = "done"
    error: str | None = None
    exception: Exception | None = None
    started: float = field(default_factory=time.perf_counter)
    surrogate: str = ""  # see Run
    floor: float = 0.0

    @property
    def step(self) -> int:
        return len(self.losses)

    def run(
        self,
        steps: int,
        deadline: float,
        *,
        measured: frozenset[int] = frozenset(),
        observe: Callable[[int, Any], float] | None = None,
        norms: bool = True,
        enough: Callable[[list[float]], bool] | None = None,
        tick: Callable[[int], None] | None = None,
    ) -> None:
        """Takes steps until `steps` are done, time is up, a number is not finite, a step raises, or `enough(losses)`."""
        while self.step < steps and self.ended == "done":
            if self._is_late(deadline):
                self.ended = "budget"
                return
            t = self.step
            batch = self.batches[t % len(self.batches)]
            try:
                loss = observe(t, batch) if observe is not None and t in measured else self.bare_step(batch, norms)
            except Exception as error:  # the user's own code runs here: it may raise anything
                self.ended, self.error, self.exception = "raised", f"{type(error).__name__}: {error}", error
                return
            self.losses.append(loss)
            if not math.isfinite(loss) or (self.norms and not math.isfinite(self.norms[-1])):
                self.ended = "non-finite"
            elif enough is not None and enough(self.losses):
                self.ended = "learned"
            if tick is not None:
                tick(t)

    def _is_late(self, deadline: float) -> bool:
        """Three steps are taken in any case, but of those of which one takes as long as all were to."""
        over, given = time.perf_counter() - deadline, deadline - self.started
        return over > 0 and self.step >= (1 if 0 < given < over else FEWEST)

    def bare_step(self, batch: Any, norms: bool = True) -> float:
        """One step as the user would take it. Returns the loss before it."""
        trainee = self.trainee
        trainee.optimizer.zero_grad(set_to_none=True)
        loss = trainee.loss(batch)
        value = float(loss.detach())
        if loss.requires_grad:
            loss.backward()
            if norms:
                self.norms.append(total_norm(trainee.model.parameters()))
        take_step(trainee, batch)
        return value

    def record(self, name: str, **more: Any) -> Run:
        return Run(
            name,
            tuple(self.losses),
            tuple(self.norms),
            len(self.batches),
            lr_of(self.trainee.optimizer),
            ended=self.ended,  # type: ignore[arg-type]
            error=self.error,
            surrogate=self.surrogate,
            floor=self.floor,
            seconds=time.perf_counter() - self.started,
            **more,
        )
