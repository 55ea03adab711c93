"""What acts at every step: schedules, L2 gradients, proximal steps; their formulas, their fixed points, their copies."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from gradcheck.remedies.modules.hooks import PenaltyHook, Proximal, RateSchedule, cosine, effective_rate, staircase, warming_up
from gradcheck.workload.training_copy import copy_optimizer

OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.005),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.3),
}


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor([values]))


def rates_of(optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """The rate that each step is taken with: plain SGD moves a weight of gradient 1 by it."""
    p = optimizer.param_groups[0]["params"][0]
    moved = []
    for _ in range(steps):
        p.grad = torch.ones_like(p)
        before = p.detach().clone()
        optimizer.step()
        moved.append(float((before - p.detach()).mean()))
    return moved


def test_schedules_are_those_of_torch() -> None:
    schedulers = {
        partial(warming_up, 5, 0.1): lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=5),
        partial(cosine, 8): lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=8),
        partial(staircase, 3, 0.1): lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=3, gamma=0.1),
    }
    for factor, scheduler in schedulers.items():
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.5)
        reference = scheduler(optimizer)
        for t in range(8):
            assert 0.5 * factor(t) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
            optimizer.step()
            reference.step()


def test_a_warm_up_acts_during_the_step_and_puts_the_rate_back() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    RateSchedule(partial(warming_up, 4, 0.0)).attach(optimizer)
    assert rates_of(optimizer, 6) == pytest.approx([0.0, 0.125, 0.25, 0.375, 0.5, 0.5])
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_warm_up_multiplies_what_a_scheduler_sets() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    RateSchedule(partial(warming_up, 2, 0.5)).attach(optimizer)
    optimizer.param_groups[0]["lr"] = 0.1
    assert rates_of(optimizer, 1) == pytest.approx([0.05])


def test_a_step_that_raises_does_not_leave_the_rate_scaled() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=0.5)
    RateSchedule(partial(warming_up, 4, 0.5)).attach(optimizer)

    def broken() -> float:
        raise ValueError("the user's closure")

    with pytest.raises(ValueError, match="closure"):
        optimizer.step(broken)
    assert rates_of(optimizer, 1) == pytest.approx([0.25])
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_copies_carry_hooks_with_a_state_of_their_own() -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    RateSchedule(partial(warming_up, 4, 0.0)).attach(optimizer)
    rates_of(optimizer, 2)
    memo: dict[int, Any] = {}
    twin_model = copy.deepcopy(model, memo)
    twin = copy_optimizer(optimizer, memo)
    assert rates_of(twin, 2) == pytest.approx([0.5, 0.75])
    assert rates_of(optimizer, 1) == pytest.approx([0.5])
    assert twin.param_groups[0]["params"][0] is twin_model.weight


def test_a_copied_penalty_spares_the_copied_embedding() -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Proximal(1.0, exempt=[model[0].weight]).attach(optimizer)
    memo: dict[int, Any] = {}
    twin_model = copy.deepcopy(model, memo)
    twin = copy_optimizer(optimizer, memo)
    before = [p.detach().clone() for p in twin_model.parameters()]
    for p in twin_model.parameters():
        p.grad = torch.zeros_like(p)
    twin.step()
    changed = [not torch.equal(p, b) for p, b in zip(twin_model.parameters(), before, strict=True)]
    assert changed == [False, True, False]
    assert torch.equal(model[1].weight, before[1])


def test_soft_thresholding_against_a_loop() -> None:
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(5, 4))
    optimizer = torch.optim.SGD([p], lr=0.1)
    start = p.detach().clone()
    Proximal(2.0, 3.0).attach(optimizer)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    for i in range(5):
        for j in range(4):
            w = float(start[i, j])
            shrunk = math.copysign(max(abs(w) - 0.1 * 2.0, 0.0), w) / (1 + 0.1 * 3.0)
            assert p[i, j].item() == pytest.approx(shrunk, abs=1e-7)
    assert 0 < int((p == 0).sum()) < p.numel()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_proximal_steps_end_where_the_penalised_loss_is_lowest(name: str) -> None:
    """min (w - a)^2 / 2 + l1 |w| + l2 w^2 / 2 is sign(a) max(|a| - l1, 0) / (1 + l2): zero is reached exactly."""
    wanted = [2.0, -1.0, 0.3]
    p = parameter(1.0, 1.0, 1.0)
    optimizer = OPTIMIZERS[name]([p])
    Proximal(0.5, 0.25).attach(optimizer)
    for _ in range(2500):
        p.grad = p.detach() - torch.tensor([wanted])
        optimizer.step()
    best = [math.copysign(max(abs(a) - 0.5, 0.0), a) / 1.25 for a in wanted]
    assert p.detach().flatten().tolist() == pytest.approx(best, abs=0.03)
    assert p[0, 2] == 0.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_effective_rate_is_the_step_of_a_constant_gradient(name: str) -> None:
    p = parameter(0.0, 0.0)
    optimizer = OPTIMIZERS[name]([p])
    slope = torch.tensor([[0.3, -2.0]])
    for _ in range(2000):
        before = p.detach().clone()
        p.grad = slope.clone()
        optimizer.step()
    step = (before - p.detach()) / slope
    torch.testing.assert_close(step, effective_rate(optimizer, optimizer.param_groups[0], p) * torch.ones_like(step), rtol=0.02, atol=0)


def test_the_gradient_of_the_penalty_is_weight_decay_of_sgd() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(3, 2, bias=False), nn.Linear(3, 2, bias=False)
    other.load_state_dict(one.state_dict())
    a = torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9)
    b = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, weight_decay=0.3)
    PenaltyHook(0.3).attach(a)
    x = torch.randn(4, 3)
    for _ in range(5):
        for model, optimizer in ((one, a), (other, b)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(one.weight, other.weight)


def test_vectors_are_not_penalised() -> None:
    bias = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([bias], lr=0.1)
    PenaltyHook(1.0).attach(optimizer)
    Proximal(1.0, 1.0).attach(optimizer)
    bias.grad = torch.zeros(3)
    optimizer.step()
    assert bias.tolist() == [1.0, 1.0, 1.0]


def test_an_entry_without_gradient_does_not_jump_to_zero() -> None:
    """Adam's root of a gradient that was always zero is zero: the step is bounded by ten times the rate."""
    p = parameter(1.0, 1.0)
    optimizer = torch.optim.Adam([p], lr=0.01)
    Proximal(0.5).attach(optimizer)
    p.grad = torch.tensor([[0.0, 0.3]])
    optimizer.step()
    assert p[0, 0].item() == pytest.approx(1 - 10 * 0.01, abs=1e-4)
