"""How often measuring makes the host wait for a device, and how much it asks of it: exact numbers, which repeat."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.instrument.deferred_statistics import SLICE, DeferredStatistics
from gradcheck.measure.session import MeasurePlan, Session
from gradcheck.types.layers import TensorStats
from gradcheck.workload.workload import Workload
from tests.device import pretend, programs
from tests.device.ledger import Ledger, recorded
from tests.measure import obvious

DEVICE = pretend.NAME
WAITS = 5  # of a measured step
FIRST_WAITS = 20
WATCHED_WAITS = 6  # of a measured step of a program that is watched
READS = 4  # of a tensor
LAUNCHES = READS + 3  # for a tensor


def mlp50() -> nn.Module:
    """Its gradients vanish below what float32 can square."""
    return nn.Sequential(*[layer for _ in range(50) for layer in (nn.Linear(6, 6), nn.ReLU())], nn.Linear(6, 3))


def half() -> nn.Module:
    return programs.mlp().to(torch.bfloat16)


def repeated() -> nn.Module:
    """Rows that are equal, and stay it."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    for p in model.parameters():
        nn.init.constant_(p, 0.1)
    return model


MODELS = programs.MODELS | {"mlp50": (mlp50, (6,)), "half": (half, (6,)), "repeated": (repeated, (6,))}


def session(name: str, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(programs, "MODELS", MODELS)
    model, batches, optimizer = programs.training(name, DEVICE)
    dtype = next(model.parameters()).dtype

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        x = batch[0].to(dtype) if batch[0].is_floating_point() else batch[0]
        return F.cross_entropy(model(x).float(), batch[1])

    workload = Workload(name, model, batches, step, optimizer, device=torch.device(DEVICE))
    return Session(workload, MeasurePlan(), lambda phase, fraction: None)


@pytest.mark.parametrize("name", MODELS)
def test_a_measured_step_waits_a_few_times(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = session(name, monkeypatch)
    for step in (0, 1, 3, 10):
        with recorded() as asked:
            measuring.observe(step, measuring.workload.batches[step % 4])
        assert asked.waits.total() <= (WAITS if step else FIRST_WAITS), asked.waits
    with recorded() as bare:
        measuring.training.take_step(measuring.workload.batches[0])
    assert bare.waits.total() == 2  # the loss, and the norm of the gradients


def test_launches_of_a_measured_step(monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = session("mlp50", monkeypatch)
    measuring.observe(0, measuring.workload.batches[0])
    with recorded() as asked:
        measuring.observe(1, measuring.workload.batches[1])
    with recorded() as bare:
        measuring.training.take_step(measuring.workload.batches[1], norms=False)
    tapped = 2 * len(measuring.layers.layers)
    assert asked.launches.total() - bare.launches.total() <= 3 * tapped


def described(x: torch.Tensor) -> tuple[TensorStats, Ledger]:
    found: list[TensorStats] = []
    results = DeferredStatistics()
    with recorded() as asked:
        results.add(x, found.append)
        results.settle()
    return found[0], asked


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_large_tensor_is_read_four_times_and_never_copied(dtype: torch.dtype) -> None:
    x = torch.randn(2 * SLICE + 12345, device="cpu").to(dtype)
    stats, asked = described(x.to(DEVICE))
    obvious.assert_same(stats, obvious.stats(x.float()))
    size = x.numel() * x.element_size()
    assert asked.waits.total() == 1
    assert asked.moved <= 1.02 * READS * size
    assert asked.largest <= 64 << 20
    assert max(asked.written.values()) < size / 100


def test_launches_for_a_tensor_of_usual_size() -> None:
    results = DeferredStatistics()
    x = torch.randn(1 << 18, device="cpu").to(DEVICE)
    with recorded() as asked:
        for _ in range(10):
            results.add(x, lambda stats: None)
    assert asked.launches.total() <= 10 * LAUNCHES
    assert not asked.waits


@pytest.mark.parametrize("spread", [1e-2, 1e-5, 1e-30, 1e30])
@pytest.mark.parametrize("lacks", [set(), {torch.float64}], ids=["float64", "no float64"])
def test_statistics_far_from_zero_and_from_one(spread: float, lacks: set[torch.dtype], monkeypatch: pytest.MonkeyPatch) -> None:
    from gradcheck.workload.device import has_float64

    middle = 1.0 if spread < 1e-20 or spread > 1 else spread * 1e3
    x = (torch.randn(70_000, device="cpu") * spread) if spread in (1e-30, 1e30) else middle + torch.randn(70_000, device="cpu") * spread
    monkeypatch.setattr(pretend, "absent", lacks)
    has_float64.cache_clear()
    stats, _ = described(x.to(DEVICE))
    has_float64.cache_clear()
    obvious.assert_same(stats, obvious.stats(x), rel=1e-4)


@pytest.mark.parametrize(("to_none", "most"), [(True, WATCHED_WAITS), (False, WATCHED_WAITS + 4)])  # averages are looked for there
def test_a_watched_step_waits_a_few_times(to_none: bool, most: int) -> None:
    """One transfer tells whether gradients were cleared, left over, or lost."""
    model, batches, optimizer = programs.training("mlp", DEVICE)
    with gradcheck.watch(model, optimizer, every=100):
        for step in range(4):
            with recorded() as asked:
                x, y = batches[step]
                optimizer.zero_grad(set_to_none=to_none)
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            assert asked.waits.total() <= (most if step else FIRST_WAITS), asked.waits


def test_nothing_waits_between_watched_steps() -> None:
    model, batches, optimizer = programs.training("mlp", DEVICE)
    with gradcheck.watch(model, optimizer, every=100):
        for step in range(20):
            with recorded() as asked:
                x, y = batches[step % 4]
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            if step == 8:
                first = asked.launches.total()
            if step >= 8:
                assert not asked.waits
                assert asked.launches.total() == first
    with recorded() as bare:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert first == bare.launches.total() + 1  # the loss is set aside
