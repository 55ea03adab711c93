"""Whole loops that are watched: one fault each, and its twin."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

import gradcheck
from gradcheck.types.report import Report
from tests.live.loops import batches, found, mlp, passed


class Loop:
    """A plain loop with one fault, or without: `faulty` says which. What it is made of is made before it is watched."""

    def __init__(self, faulty: bool, every: int = 1, steps: int = 14) -> None:
        self.faulty, self.every, self.steps = faulty, every, steps
        torch.manual_seed(0)
        self.model = mlp(width=16)
        self.optimizer: torch.optim.Optimizer = self.make()
        self.prepare()

    def make(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=3e-3)

    def prepare(self) -> None:
        """What else there is before the loop."""

    def step(self, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    def run(self) -> None:
        for i, (x, y) in enumerate(batches(self.steps, size=32)):
            self.step(x, y, i)

    def watched(self) -> Report:
        with gradcheck.watch(self.model, self.optimizer, every=self.every) as board:
            self.run()
        assert board.failure is None, repr(board.failure)
        return board.report()


class Steps(Loop):
    def step(self, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        if not self.faulty:
            self.optimizer.step()


class Batches(Loop):
    def run(self) -> None:
        data = torch.utils.data.TensorDataset(*(torch.cat(t) for t in zip(*batches(self.steps, size=32), strict=True)))
        loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=False)
        for i, (x, y) in enumerate([next(iter(loader))] * self.steps if self.faulty else loader):
            self.step(x, y, i)


class Recreated(Loop):
    def step(self, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        if self.faulty:
            self.optimizer = self.make()
        super().step(x, y, i)


class Restarted(Loop):
    """The scheduler is made again before each of its steps."""

    def prepare(self) -> None:
        self.scheduler = self.schedule()

    def schedule(self) -> Any:
        return torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 14)

    def step(self, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        if self.faulty:
            self.scheduler = self.schedule()
        super().step(x, y, i)
        self.scheduler.step()


class Average(Loop):
    """A teacher that follows the weights, in evaluation mode; the healthy one's buffers follow too."""

    def prepare(self) -> None:
        self.teacher = copy.deepcopy(self.model).requires_grad_(False).eval()

    def step(self, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        super().step(x, y, i)
        with torch.no_grad():
            for mine, other in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                mine.lerp_(other, 0.1)
            if not self.faulty:
                for buffer, other in zip(self.teacher.buffers(), self.model.buffers(), strict=True):
                    buffer.copy_(other)


class Placed(Loop):
    """A schedule for all steps, stepped once an epoch."""

    def prepare(self) -> None:
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 3e-3, total_steps=20)

    def run(self) -> None:
        epochs, data = 4, list(batches(5, size=32))
        for _ in range(epochs):
            for x, y in data:
                self.step(x, y, 0)
                if not self.faulty:
                    self.scheduler.step()
            if self.faulty:
                self.scheduler.step()


KINDS: dict[str, type[Loop]] = {
    "LOOP001": Steps,
    "LOOP005": Batches,
    "LOOP009": Recreated,
    "LOOP012": Average,
    "LOOP013": Placed,
}


@pytest.mark.parametrize("faulty", [True, False])
@pytest.mark.parametrize("code", KINDS)
def test_a_watched_loop_is_told_by_its_rule(code: str, faulty: bool) -> None:
    report = KINDS[code](faulty).watched()
    assert found(report) == ({code} if faulty else set())
    (state,) = [s for s in report.rules if s.code == code]
    assert state.status == "finding" if faulty else state.status in ("passed", "not-applicable")
    for finding in report.findings:
        if finding.code == code != "LOOP012":  # the teacher was made before anybody listened
            assert finding.location is not None and finding.location.path.endswith("test_loop_kinds.py")


@pytest.mark.parametrize("code", ["LOOP005", "LOOP009", "LOOP012", "LOOP013"])
def test_a_loop_of_which_few_steps_are_measured(code: str) -> None:
    assert found(KINDS[code](False, every=50, steps=60).watched()) == set()
    report = KINDS[code](True, every=50, steps=60).watched()
    assert found(report) == {code}


def test_schedulers_that_begin_again_and_again() -> None:
    assert found(Restarted(True).watched()) == {"LOOP009"}
    assert found(Restarted(False).watched()) == set()


def test_a_second_optimizer_of_the_same_weights_takes_over_from_none() -> None:
    class Both(Loop):
        def prepare(self) -> None:
            self.other = self.make()

        def step(self, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
            super().step(x, y, i)
            if i % 3 == 0:
                self.optimizer, self.other = self.other, self.optimizer

    report = Both(False).watched()
    assert report.measurement.loop is not None and report.measurement.loop.made == 1


def test_a_step_that_raises_does_not_end_the_watching() -> None:
    class Raises(Loop):
        def step(self, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
            if i == 3:
                with pytest.raises(ValueError, match="mine"):
                    self.optimizer.step(self.closure)  # type: ignore[arg-type]
            super().step(x, y, i)

        def closure(self) -> torch.Tensor:
            raise ValueError("mine")

    report = Raises(False).watched()
    assert report.measurement.loop is not None and report.measurement.loop.taken == 14


def test_passes_of_a_loop_that_goes_on_are_no_missing_step() -> None:
    loop = Steps(True)
    with gradcheck.watch(loop.model, loop.optimizer) as board:
        loop.run()
        (state,) = [s for s in board.report().rules if s.code == "LOOP001"]
        assert state.status == "not-measured"


@pytest.mark.parametrize(("before", "codes"), [(False, set()), (True, {"LOOP002"})])
def test_clipping_in_a_closure_is_seen(before: bool, codes: set[str]) -> None:
    """As Lightning's trainer clips; `before` the pass."""

    class Closure(Loop):
        def step(self, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
            def closure() -> torch.Tensor:
                self.optimizer.zero_grad()
                if before:
                    clip_grad_norm_(self.model.parameters(), 1.0)
                loss = passed(self.model, x, y)
                if not before:
                    clip_grad_norm_(self.model.parameters(), 1.0)
                return loss

            self.optimizer.step(closure)  # type: ignore[arg-type]

    report = Closure(False).watched()
    assert found(report) == codes
    assert report.measurement.loop is not None and report.measurement.loop.clips
