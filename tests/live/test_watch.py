"""Watching a loop: it sees what is there, and says nothing wrong."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.errors import ConfigError, TargetError, TrainingStopped
from tests.live import faulty, healthy, loops
from tests.live.loops import Kept


def test_norms_are_those_before_clipping_and_without_the_scale() -> None:
    plain, scaled, clipped = Kept(every=1), Kept(every=1), Kept(every=1)
    loops.scaled(plain, steps=2, factor=1.0)
    loops.scaled(scaled, steps=2, factor=2.0**12)
    loops.scaled(clipped, steps=1, factor=2.0**12, clip=True)
    runs = [k.board.report().measurement.probe for k in (plain, scaled, clipped)]
    assert runs[0].gradient_norms == pytest.approx(runs[1].gradient_norms, rel=1e-4)
    assert runs[0].gradient_norms[:1] == pytest.approx(runs[2].gradient_norms[:1], rel=1e-4)
    assert [r.loss_scale for r in runs] == [1.0, 2.0**12, 2.0**12]
    chances = [k.board.report().measurement.chance for k in (plain, scaled)]
    assert chances[0] is not None and chances[0] == pytest.approx(chances[1], rel=1e-4)
    layers = [k.board.report().layers for k in (plain, scaled)]
    for one, other in zip(*layers, strict=True):
        a, b = one.at(0), other.at(0)
        if a is None or b is None or a.gradient is None or b.gradient is None:
            assert one.kind in ("container", "dropout")
            continue
        assert a.gradient.norm == pytest.approx(b.gradient.norm, rel=1e-3)
        assert abs(a.gradient.exponent_low - b.gradient.exponent_low) <= 1


def test_a_step_that_the_scaler_skips_is_none() -> None:
    kept = Kept(every=1)
    loops.scaled(kept, steps=5)
    assert kept.board.steps == 4
    assert all(map(math.isfinite, kept.board.report().measurement.probe.gradient_norms))


def test_a_scaler_that_skips_every_step_from_one_on_is_told_of_while_it_does() -> None:
    torch.manual_seed(0)
    model = loops.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    kept = Kept(looks=True)
    with kept(model, optimizer):
        for i, (x, y) in enumerate(loops.batches(400)):
            optimizer.zero_grad()
            output = model(x)
            broken = (output - output.detach()).square().sum().sqrt()  # 0, and its derivative is not finite
            scaler.scale(F.cross_entropy(output, y) + (broken if i >= 60 else 0.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            assert i < 120 or ("warning", "WATCH008") in kept.found
    assert kept.board.steps == 60 and scaler.get_scale() == 0.0


def test_gradients_that_were_changed_by_hand_are_said_to_be_clipped() -> None:
    model = loops.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradcheck.watch(model, optimizer) as board:
        for x, y in loops.batches(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            for p in model.parameters():
                assert p.grad is not None
                p.grad.clamp_(-0.01, 0.01)
            optimizer.step()
    assert board.report().measurement.probe.clipped


def test_accumulated_losses_are_summed_and_evaluation_is_not_training() -> None:
    kept = Kept(every=1)
    loops.accumulate(kept, steps=4)
    report = kept.board.report()
    assert len(report.measurement.probe.losses) == 4
    assert report.measurement.probe.losses[0] == pytest.approx(math.log(5), abs=0.2)  # not a quarter of it
    kept = Kept(every=1)
    loops.classify(kept, steps=3)
    layer = kept.board.report().measurement.layer("0")
    assert layer is not None and all(s.output is not None and s.output.count == 64 * 64 for s in layer.snapshots)


@pytest.mark.parametrize("clears", ["before the passes", "in the closure", "before the step"])
def test_passes_before_a_step_with_a_closure_count_when_their_gradients_do(clears: str) -> None:
    """As trainers accumulate: the last pass of a step runs in its closure."""
    model = loops.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses: list[float] = []

    def one_pass(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(model(x), y) / 2
        losses.append(loss.item())
        loss.backward()
        return loss

    def closure(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if clears == "in the closure":
            optimizer.zero_grad()
        return one_pass(x, y)

    with gradcheck.watch(model, optimizer, every=2) as board:
        for x, y in loops.batches(7):
            if clears == "before the passes":
                optimizer.zero_grad()
            one_pass(x, y)
            if clears == "before the step":
                optimizer.zero_grad()
            optimizer.step(functools.partial(closure, x, y))
    used = losses[1::2] if clears != "before the passes" else [a + b for a, b in zip(losses[::2], losses[1::2], strict=True)]
    assert board.failure is None
    assert board.report().measurement.probe.losses == pytest.approx(used)


def test_a_backward_pass_that_raises_is_none_of_the_step() -> None:
    model = loops.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses: list[float] = []
    with gradcheck.watch(model, optimizer, every=50) as board:
        for i, (x, y) in enumerate(loops.batches(8)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if i == 6:  # as when memory runs out: the program goes on with the next batch
                handle = loss.grad_fn.register_prehook(lambda gradients: 1 / 0)  # type: ignore[union-attr]
                with contextlib.suppress(ZeroDivisionError):
                    loss.backward()
                handle.remove()
                continue
            losses.append(loss.item())
            loss.backward()
            optimizer.step()
    assert board.failure is None and board.report().measurement.probe.losses == pytest.approx(losses)


def test_a_model_that_the_loop_sets_to_training_is_in_training() -> None:
    for trains in (True, False):
        model = loops.mlp().eval()  # as pretrained ones come
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradcheck.watch(model, optimizer) as board:
            for x, y in loops.batches(4):
                model.train(trains)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        assert board.report().measurement.training is trains


def test_statistics_are_those_of_a_slow_second_look() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = next(loops.batches(1))
    hidden = model[0](x)
    hidden.retain_grad()
    F.cross_entropy(model[2](model[1](hidden)), y).backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.zero_grad()
    with gradcheck.watch(model, optimizer) as board:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    m = board.report().measurement
    layer, weight = m.layer("0"), m.parameter("0.weight")
    snapshot = layer.at(0) if layer is not None else None
    assert snapshot is not None and snapshot.output is not None and snapshot.gradient is not None and weight is not None
    assert snapshot.output.mean == pytest.approx(hidden.mean().item(), rel=1e-5)
    assert hidden.grad is not None and snapshot.gradient.norm == pytest.approx(hidden.grad.norm().item(), rel=1e-5)
    assert m.probe.gradient_norms[0] == pytest.approx(sum(float(g.norm()) ** 2 for g in gradients) ** 0.5, rel=1e-5)
    step = weight.at(0)
    assert step is not None
    assert step.update_ratio == pytest.approx(0.5 * gradients[0].norm().item() / step.norm, rel=1e-3)


@pytest.mark.parametrize("name", healthy.KINDS)
def test_a_healthy_training_gets_no_error_and_no_warning(name: str) -> None:
    kept = Kept(looks=True, every=50)
    healthy.KINDS[name](kept)
    assert kept.board.steps >= 300
    assert not kept.found and not kept.board.report().coverage.in_part


@pytest.mark.parametrize("critic", [0, 6])
def test_a_healthy_pair_of_adversaries_gets_none_either(critic: int) -> None:
    kept = Kept(looks=True, every=50)
    loops.adversaries(kept, 300, critic)
    report = kept.board.report()
    assert not kept.found and report.measurement.probe.beside == (not critic) and not report.coverage.in_part


@pytest.mark.parametrize("name", faulty.KINDS)
def test_a_faulty_training_is_told_by_the_right_code(name: str) -> None:
    train, code = faulty.KINDS[name]
    kept = Kept(looks=True, every=50)
    train(kept)
    assert code in {found for _, found in kept.found}
    assert not [s for s in kept.board.report().rules if s.status == "crashed"]


def test_stop_on_ends_the_loop_from_within() -> None:
    cleaned, steps = [], []

    def loop(watch: loops.Watch) -> None:
        try:
            faulty.dead(watch)
        finally:
            cleaned.append(True)

    def watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> gradcheck.Board:
        steps.append(gradcheck.watch(model, optimizer, stop_on="error"))
        return steps[0]

    loop(watch)
    board = steps[0]
    assert board.stopped is not None and board.stopped.severity == "error"
    assert board.steps < 10 and cleaned == [True]
    assert not issubclass(TrainingStopped, Exception)


def test_the_loss_can_be_told() -> None:
    model = loops.mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradcheck.watch(model, optimizer, loss=nn.CrossEntropyLoss(), every=2) as board:
        for i, (x, y) in enumerate(loops.batches(5)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            board.step(torch.tensor(float(i)))
            optimizer.step()
    assert board.report().measurement.probe.losses == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert board.loss == 4.0


def test_functional_calls_are_seen_at_every_measured_step() -> None:
    kept = Kept(every=5)
    loops.checkpointed(kept)
    m = kept.board.report().measurement
    layer = m.layer(":relu")
    assert layer is not None and tuple(s.step for s in layer.snapshots) == m.measured_steps == (0, 1, 2, 3, 5, 10)
    assert [x.name for x in m.layers if x.head] == ["head"]
    assert m.losses[0].producer_layer == "head"


def test_a_report_can_be_saved_and_judged_again(tmp_path: Path) -> None:
    from gradcheck.config.settings import Settings
    from gradcheck.judge.judge import judge_again

    kept = Kept(every=50)
    faulty.dead(kept)
    kept.board.report().to_json(tmp_path / "run.json")
    saved = gradcheck.Report.load(tmp_path / "run.json")
    assert [f.code for f in saved.findings] == [f.code for f in kept.board.findings]
    assert [f.code for f in judge_again(saved, Settings()).findings] == [f.code for f in kept.board.findings]


def test_memory_is_bounded() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradcheck.watch(model, optimizer, every=1) as board:
        for _ in range(200):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    m = board.report().measurement
    assert len(m.measured_steps) <= 60 and m.measured_steps[:4] == (0, 1, 2, 3) and m.measured_steps[-1] == 199
    assert all(tuple(s.step for s in layer.snapshots) == m.measured_steps for layer in m.layers)
    assert all(tuple(s.step for s in p.steps) == m.measured_steps for p in m.parameters)
    assert len(m.probe.gradient_norms) == len(m.measured_steps)


def test_a_fault_of_gradcheck_does_not_reach_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradcheck.live.loop_monitor import LoopMonitor

    def broken(self: LoopMonitor, watching: Any) -> None:
        raise ZeroDivisionError("gradcheck's own")

    monkeypatch.setattr(LoopMonitor, "_file", broken)
    kept = Kept(every=5)
    loops.classify(kept, steps=8)
    assert isinstance(kept.boards[0].failure, ZeroDivisionError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model", None), "needs a torch.nn.Module, not str"),
        ((nn.Linear(2, 2), nn.Linear(2, 2)), "needs a torch.optim.Optimizer, not Linear"),
    ],
)
def test_what_is_no_training_is_refused(arguments: tuple[Any, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        gradcheck.watch(*arguments)


@pytest.mark.parametrize("options", [{"every": 0}, {"every": 2.5}, {"stop_on": "never"}])
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        gradcheck.watch(nn.Linear(2, 2), **options)


def test_one_board_at_a_time() -> None:
    with gradcheck.watch(nn.Linear(2, 2)), pytest.raises(ConfigError, match="another run"):
        gradcheck.watch(nn.Linear(2, 2)).start()
    gradcheck.watch(nn.Linear(2, 2)).start().close()


def test_judging_looks_for_the_optimizers_of_the_process_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradcheck.live import live_judge

    looked: list[int] = []
    monkeypatch.setattr(live_judge, "living_optimizers", lambda: looked.append(1) or [])
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradcheck.watch(model, optimizer, every=1) as board:
        for _ in range(9):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).pow(2).mean().backward()
            optimizer.step()
            board.report()
        assert len(looked) == 1
        other = torch.optim.SGD(model.parameters(), lr=0.01)
        optimizer.zero_grad()
        model(torch.randn(8, 4)).pow(2).mean().backward()
        optimizer.step()
        board.report()
        assert len(looked) == 2 and other.param_groups


@pytest.mark.parametrize("by_hand", [False, True])
def test_copies_that_a_step_trains_are_not_missing_from_the_model_and_not_kept(by_hand: bool) -> None:
    """First-order MAML: every task trains a copy of its own, with an optimizer of its own or without."""
    made: list[weakref.ref[nn.Module]] = []
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 5))

    class Meta(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.optimizer = model, torch.optim.Adam(model.parameters(), lr=1e-3)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> None:
            fast = copy.deepcopy(self.net)
            made.append(weakref.ref(fast))
            inner = None if by_hand else torch.optim.SGD(fast.parameters(), lr=0.02)
            for _ in range(2):
                fast.zero_grad()
                F.cross_entropy(fast(x), y).backward()
                if inner is not None:
                    inner.step()
                for p in fast.parameters() if by_hand else ():
                    p.data -= 0.02 * p.grad
            for p, q in zip(self.net.parameters(), fast.parameters(), strict=True):
                p.grad = q.grad
            self.optimizer.step()

    meta = Meta()
    with gradcheck.watch(meta, meta.optimizer, every=2) as board:
        for x, y in loops.batches(12):
            meta(x, y)
    gc.collect()
    assert board.failure is None and "GRAPH002" not in {f.code for f in board.findings}
    assert sum(m() is not None for m in made) <= 2
