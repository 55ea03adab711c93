"""When a step is measured, and that a share of the time is held."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradcheck
from gradcheck.live.cadence import Cadence, StepTimer


class Run:
    """A run on a clock of its own. `bare`, `measured`: seconds of a step; `judged`: after each measured one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bare: float, measured: float, judged: float = 0.0, **options: float) -> None:
        self.now, self.bare, self.measured, self.judged = 0.0, bare, measured, judged
        monkeypatch.setattr("gradcheck.live.cadence.time.perf_counter", lambda: self.now)
        self.pace = StepTimer()
        self.cadence = Cadence(self.pace, **options)  # type: ignore[arg-type]
        self.steps: list[int] = []
        self.spent = 0.0

    def take(self, count: int, first: int = 0, ask: bool = False) -> list[int]:
        for step in range(first, first + count):
            measures = self.cadence.wanted
            self.now += self.measured if measures else self.bare
            self.pace.step(measures)
            if measures:
                self.steps.append(step)
                self.now += self.judged
                self.spent += self.measured - self.bare + self.judged
                self.pace.resume()
                self.cadence.note(step)
            if ask:
                self.cadence.ask()
            self.cadence.look(step + 1)
        return self.steps


def test_every_is_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Run(monkeypatch, 0.001, 1.0, every=7).take(30) == [0, 1, 2, 3, 7, 14, 21, 28]


@pytest.mark.parametrize("bare", [0.0001, 0.0025, 0.1])
@pytest.mark.parametrize("share", [0.01, 0.03, 0.2])
def test_the_share_is_held_on_any_step_however_small(bare: float, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, bare, bare + 0.005, judged=0.002, share=share)
    run.take(4)
    began, run.spent, run.steps = run.now, 0.0, []
    count = round(30 / bare) if bare < 0.1 else 2000
    run.take(4 + count)
    assert len(run.steps) > 10
    assert run.spent <= share * (run.now - began) * 1.02 + 0.03


@pytest.mark.parametrize(("own", "held"), [(0.00003, 0.03), (0.001, 0.05)])
def test_hooks_of_other_steps_count_and_never_stop_the_looking(own: float, held: float, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, 0.003, 0.012, share=0.03)
    run.take(4)
    began, run.spent, run.steps = run.now, 0.0, []
    for step in range(4, 8004):
        run.now, run.pace.own = run.now + own, run.pace.own + own
        run.take(1, step)
    assert len(run.steps) >= 3
    assert run.spent + min(run.pace.own, 0.02 * (run.now - began)) <= held * (run.now - began)


def test_moments_without_the_processor_are_no_cost_of_watching(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, 0.01, 0.02)
    run.take(4)
    run.pace.spent = run.pace.own = 0.0
    for i in range(90):
        run.pace.note_own(0.5 if i % 10 == 9 else 0.001)
    assert run.pace.own == pytest.approx(81 * 0.001 + 9 * 0.004)
    run.measured = 5.0
    assert len(run.take(100, 4)) == 5
    assert run.pace.spent == pytest.approx(0.04)


def test_at_most_one_step_in_fifty_unless_steps_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Run(monkeypatch, 0.1, 0.101).take(160) == [0, 1, 2, 3, 53, 103, 153]
    long = Run(monkeypatch, 4.0, 4.2).take(30)
    assert long[4] - long[3] <= 9


def test_processes_keep_to_the_interval_that_they_agreed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, 0.001, 0.011, share=0.05)
    run.cadence.agreed = 200
    assert run.take(500) == [0, 1, 2, 3, 203, 403]
    assert run.cadence.interval == 200


def test_the_overhead_of_a_short_run_is_that_of_its_steps_after_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, 0.003, 0.5, share=0.03)
    run.take(200)
    assert run.steps == [0, 1, 2, 3] and run.pace.overhead is None
    run.take(2000, 200)
    assert run.pace.overhead == 0.0  # another step would not be within the share
    counted = Run(monkeypatch, 0.1, 0.2, every=50)
    counted.take(101)
    assert counted.pace.overhead == pytest.approx(0.2 / (97 * 0.1 + 0.2), rel=1e-6)


def test_a_step_that_is_asked_for_is_lent_by_those_that_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch, 0.1, 0.101)
    run.take(60)
    run.take(50, 60, ask=True)
    assert run.steps == [0, 1, 2, 3, 53, 61]
    held = Run(monkeypatch, 0.001, 0.021, share=0.02)
    held.take(4)
    began, held.spent = held.now, 0.0
    held.take(20000, 4, ask=True)  # everything jumps
    assert len(held.steps) > 20 and held.spent <= 0.02 * (held.now - began) + 2 * 0.02


MOST_CALLS = 40  # of gradcheck's functions in a step that is not measured, where 311 were called before: 256 asked what the indices are


def test_a_step_that_is_not_measured_costs_next_to_nothing() -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batches = iter(DataLoader(TensorDataset(torch.randn(256 * 110, 4)), batch_size=256))

    def take(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model(next(batches)[0]).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 100.0)
            optimizer.step()

    calls: Counter[str] = Counter()

    def called(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and "/gradcheck/" in frame.f_code.co_filename:
            calls[frame.f_code.co_name] += 1

    with gradcheck.watch(model, optimizer, every=80) as board:
        take(90)
        sys.setprofile(called)
        take(10)
        sys.setprofile(None)
    assert board.record.measured[-1] == 80 and board.failure is None
    assert sum(calls.values()) <= 10 * MOST_CALLS, calls.most_common(20)
