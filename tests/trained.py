"""Trainings of treated workloads, in one call."""

from __future__ import annotations

from typing import Any

from gradcheck.training.trainer import Trainer
from gradcheck.types.training import Run
from gradcheck.workload.treated import TreatedWorkload


def train(treated: TreatedWorkload, *, steps: int, seed: int, **more: Any) -> Run:
    """Of a copy, from the present weights; `more`: as `Trainer.train` takes it."""
    training = Trainer.of(treated, seed)
    training.train(steps, **more)
    return training.record()
