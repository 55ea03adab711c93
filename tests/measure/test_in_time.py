"""The measured steps at the end are taken as far as there is time for them, and the report says which are missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gradcheck.measure.checks.context import LATE
from gradcheck.measure.probe import FINAL_STEPS, Probe
from gradcheck.measure.session import MeasurePlan, Session
from gradcheck.training.trainer import Trainer
from gradcheck.workload.training_copy import fork
from tests.measure.workloads import workload


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which only measured steps take."""
    seconds = [0.0]
    monkeypatch.setattr("gradcheck.measure.probe.now", lambda: seconds[0])
    monkeypatch.setattr("gradcheck.training.trainer.now", lambda: seconds[0])
    return seconds


def final_steps(clock: list[float], *, end: float, spare: float) -> int:
    """Of a probe whose measured steps take a second each, and that is over after the first one."""
    w = workload(nn.Linear(6, 2))
    training = Trainer(fork(w), w.batches)

    def observe(step: int, batch: Any) -> float:
        clock[0] += 1.0
        return training.take_step(batch)

    run = Probe(training, 11, observe, lambda: None, lambda phase, fraction: None)
    run.run(lambda: 0.5, whole=False, end=end, spare=spare)
    return run.final


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, 0), (0.9, 0), (2.5, 2), (60.0, FINAL_STEPS)])
def test_as_many_as_there_is_time_for(clock: list[float], seconds: float, steps: int) -> None:
    early = 2  # of the three that are taken in any case
    assert final_steps(clock, end=early + seconds, spare=0.0) == steps


def test_a_small_model_has_all_of_them_though_time_is_over(clock: list[float]) -> None:
    assert final_steps(clock, end=0.0, spare=5.0) == FINAL_STEPS


def test_what_is_missing_is_said() -> None:
    w = workload(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))
    session = Session(w, MeasurePlan(steps=30, seconds=1e-6, needs=("signals",), fast=True), lambda phase, fraction: None)
    session.run()
    short = [n for n in session.not_measured if n.lack == "short"]
    assert {"signals", "parameters", "units", "similarity"} <= {n.what for n in short}
    assert all("--budget" in n.remedy for n in short) and torch.is_grad_enabled()


def test_the_checks_of_fast_mind_the_time() -> None:
    w = workload(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)))
    session = Session(w, MeasurePlan(seconds=1e-6, needs=("dependence", "clipping"), fast=True), lambda phase, fraction: None)
    session.run()
    late = {n.what: n for n in session.not_measured if n.why == LATE}
    assert set(late) == {"dependence"} and "--budget" in late["dependence"].remedy
