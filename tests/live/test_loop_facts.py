"""What a watched loop does around its passes: faulty loops and their twins; and what nobody looked at is not measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

import gradcheck
from gradcheck.config.settings import Settings
from gradcheck.instrument.loop_journal import Evaluations, Off
from gradcheck.judge.judge import judge
from gradcheck.judge.registry import builtin_rules
from gradcheck.live.loop_log import MOST_RATES, LoopLog
from gradcheck.types.loop import NEVER_EVALUATED, NO_SCALER, LoopFacts
from gradcheck.types.report import Report
from tests.literals import measurement
from tests.live.loops import batches, found, mlp, passed

Step = Callable[[nn.Module, torch.optim.Optimizer, torch.Tensor, torch.Tensor, int], Any]


def watched(step: Step, steps: int = 14) -> Report:
    torch.manual_seed(0)
    model = mlp(width=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with gradcheck.watch(model, optimizer, every=1) as board:
        for i, (x, y) in enumerate(batches(steps, size=32)):
            step(model, optimizer, x, y, i)
    assert board.failure is None, repr(board.failure)
    return board.report()


def clipping(order: str) -> Step:
    """`order`: of zero_grad, backward, clip and step, by their first letters. `o`: of other parameters, `e`: of none."""
    other, empty = mlp(width=16), iter(())

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        do = {
            "z": optimizer.zero_grad,
            "b": lambda: passed(model, x, y),
            "c": lambda: clip_grad_norm_(model.parameters(), 1.0),
            "o": lambda: clip_grad_norm_(other.parameters(), 1.0),
            "e": lambda: clip_grad_norm_(empty, 1.0),
            "s": optimizer.step,
        }
        for word in order:
            do[word]()

    return step


@pytest.mark.parametrize(
    ("order", "codes"),
    [
        ("zbcs", set()),
        ("zbs", set()),
        ("zbsc", {"LOOP002"}),
        ("zcbs", {"LOOP002"}),
        ("zbos", {"LOOP002"}),
        ("zbes", {"LOOP002"}),
        ("bzs", {"GRAPH006"}),
        ("bs", {"GRAPH006"}),
    ],
)
def test_the_order_of_a_loop(order: str, codes: set[str]) -> None:
    report = watched(clipping(order))
    assert found(report) == codes
    if "LOOP002" in codes:
        (finding,) = [f for f in report.findings if f.code == "LOOP002"]
        assert finding.location is not None and finding.location.path.endswith("test_loop_facts.py")
        assert "14 of 14 calls" in finding.message


@pytest.mark.parametrize(("restores", "codes"), [(True, set()), (False, {"LOOP003"})])
def test_an_evaluation_that_is_not_undone(restores: bool, codes: set[str]) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        if i == 5:
            model.eval()
            with torch.no_grad():
                model(x)
            model.train(restores)
        optimizer.zero_grad()
        passed(model, x, y)
        optimizer.step()

    report = watched(step)
    assert found(report) == codes
    loop = report.measurement.loop
    assert loop is not None and loop.evaluation is not None and loop.evaluation.steps == (0 if restores else 9)
    if not restores:
        (finding,) = [f for f in report.findings if f.code == "LOOP003"]
        assert "9 of 14 steps (limit 2), from step 5 on" in finding.message and finding.severity == "error"
        assert finding.location is not None and finding.location.path.endswith("test_loop_facts.py")


@pytest.mark.parametrize(("factor", "codes"), [(0.9, set()), (0.1, {"LOOP004"})])
def test_a_schedule_that_takes_the_rate_away(factor: float, codes: set[str]) -> None:
    schedules: list[Any] = []

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        if not i:
            schedules.append(torch.optim.lr_scheduler.StepLR(optimizer, 1, factor))
        optimizer.zero_grad()
        passed(model, x, y)
        optimizer.step()
        schedules[0].step()

    assert found(watched(step)) == codes


@pytest.mark.parametrize(
    ("unscales", "by_scaler", "codes"), [(True, True, set()), (False, True, {"LOOP002", "LOOP007"}), (False, False, {"LOOP002", "LOOP007"})]
)
def test_a_scaled_loss(unscales: bool, by_scaler: bool, codes: set[str]) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(x), y)).backward()
        if unscales:
            scaler.unscale_(optimizer)
        clip_grad_norm_(model.parameters(), 1.0)
        if by_scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()

    report = watched(step)
    assert found(report) == codes
    loop = report.measurement.loop
    assert loop is not None and loop.scaler is not None and loop.scaler.factor == 1024.0


def test_gradients_that_are_changed_by_hand_leave_clipping_open() -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        optimizer.zero_grad()
        passed(model, x, y)
        for p in model.parameters():
            assert p.grad is not None
            p.grad.clamp_(-0.1, 0.1)
        optimizer.step()

    report = watched(step, 6)
    assert report.measurement.loop is not None and report.measurement.loop.clips is None
    assert {s.status for s in report.rules if s.code == "LOOP002"} == {"not-measured"}


def test_passes_of_a_step_are_counted() -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        (F.cross_entropy(model(x), y) / 2).backward()
        if i % 2:
            optimizer.step()
            optimizer.zero_grad()

    loop = watched(step, 12).measurement.loop
    assert loop is not None and (loop.accumulated, loop.dropped, loop.lost, loop.leftover) == (2, 0, 0, 0)
    assert (loop.clips, loop.scaler, loop.evaluation) == ((), NO_SCALER, NEVER_EVALUATED)


@pytest.mark.parametrize(("steps", "in_part"), [(14, False), (3, True), (0, True)])
def test_a_run_of_a_few_steps_is_judged_in_part(steps: int, in_part: bool) -> None:
    report = watched(clipping("zbs"), steps)
    assert report.coverage.in_part is in_part and report.exit_code() == (2 if in_part else 0)
    assert not in_part or "watch a longer run" in report.coverage.remedies


def test_what_nobody_looked_at_is_not_measured() -> None:
    m = measurement(loop=LoopFacts("optimizer", 40, 40))
    rules = [r for r in builtin_rules() if r.code.startswith("LOOP") or r.code == "GRAPH006"]
    _, _, states = judge([m], rules, Settings())
    silent = {s.code for s in states if s.status == "not-measured"}
    assert silent == {"GRAPH006", *(f"LOOP0{i:02}" for i in (2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14))}
    assert {s.code: s.status for s in states if s.code not in silent} == {"LOOP001": "passed", "LOOP008": "not-applicable"}


def test_rates_are_kept_in_bounded_memory_and_not_waited_for() -> None:
    log = LoopLog()
    for i in range(MOST_RATES + 5):
        log.note_rate([{"lr": 0.1 + i, "initial_lr": 0.5}, {"lr": torch.tensor(0.2)}])
    assert log.rates is not None and len(log.rates) == MOST_RATES and log.base_rate == 0.5
    assert log.rates[:2] == pytest.approx([0.2, 1.1])
    on_device = LoopLog()
    on_device.note_rate([{"lr": torch.empty((), device="meta")}])
    assert on_device.rates is None


def test_a_steep_change_of_the_rate_is_kept_whenever_it_comes() -> None:
    log = LoopLog()
    for i in range(MOST_RATES + 50):
        log.note_rate([{"lr": 500.0 if i == MOST_RATES + 20 else 0.05 + 1e-5 * i}])
    assert list(log.turns) == [MOST_RATES + 19, MOST_RATES + 20, MOST_RATES + 21]
    assert log.turns[MOST_RATES + 20] == 500.0 and log.turns[MOST_RATES + 19] == pytest.approx(0.06019)


def test_modes_and_passes_that_say_nothing_make_no_fact() -> None:
    log = LoopLog()
    log.note_passes(3, 2)
    assert log.accumulated is None
    modes = Evaluations()
    modes.note(0, [], False)
    assert modes.record(None) == NEVER_EVALUATED
    plain = nn.Linear(2, 2).eval()
    modes.note(1, [Off(plain, frozenset(), (), (), False)])
    assert modes.record(None) == NEVER_EVALUATED, "nothing in it is another in evaluation mode"


@pytest.mark.parametrize("kept", [True, False])
def test_losses_that_keep_their_graphs(kept: bool) -> None:
    """LOOP010: told with the variable that holds them, and silent where they are cut off."""
    total: list[torch.Tensor] = []

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        loss = passed(model, x, y)
        optimizer.step()
        optimizer.zero_grad()
        total.append(loss if kept else loss.detach())

    findings = [f for f in watched(step).findings if f.code == "LOOP010"]
    assert [(f.severity, f.message.split()[0]) for f in findings] == ([("warning", "total")] if kept else [])


@pytest.mark.parametrize(
    ("weigh", "codes"),
    [
        (lambda rows, y, ignored: F.cross_entropy(rows, ignored) / 3, {"LOOP011"}),
        (lambda rows, y, ignored: (F.cross_entropy(rows, y, reduction="none") * (ignored >= 0)).sum() / (ignored >= 0).sum(), {"LOOP011"}),
        (lambda rows, y, ignored: F.cross_entropy(rows, ignored, label_smoothing=0.1) / 3, {"LOOP011"}),
        (lambda rows, y, ignored: F.cross_entropy(rows, ignored, reduction="sum") * (1 / 38), set()),
        (lambda rows, y, ignored: F.cross_entropy(rows, y) / 3, set()),
    ],
    ids=["means", "masked by hand", "smoothed labels", "sums", "equally many"],
)
def test_micro_batches_of_different_numbers_of_elements(weigh: Callable[..., torch.Tensor], codes: set[str]) -> None:
    def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, i: int) -> None:
        optimizer.zero_grad()
        for count in (2, 32, 4):
            rows = model(x)
            ignored = y.masked_fill(torch.arange(32) >= count, -100)
            weigh(rows, y, ignored).backward()
        optimizer.step()

    report = watched(step, steps=10)
    assert found(report) & {"LOOP011"} == codes
    loop = report.measurement.loop
    assert loop is not None and loop.weighting is not None
    assert loop.weighting.ratio == pytest.approx(16 if codes else 1, rel=1e-3)
