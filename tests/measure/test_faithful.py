"""A copy is measured where it is as good as the model; else the model itself, with the same result, and put back as it was."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.config.settings import Settings
from gradcheck.loading.load import load
from gradcheck.loading.spec import TargetSpec
from gradcheck.measure.faithful import ensure_faithful
from gradcheck.pipeline import scan_workload
from gradcheck.workload.borrowing import Borrowed
from sample_models.catalogue import README
from tests.measure.workloads import two_clusters, workload

OUTSIDE = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())


class Head(nn.Module):
    """Calls a module that it does not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(OUTSIDE(x))


class Memory(nn.Module):
    """Keeps a reference to itself where no copy can follow: in its class."""

    first: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 2)
        type(self).first = type(self).first or self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) * (1.0 if type(self).first is self else 0.5)


class Moody(nn.Module):
    """Another loss each time, from numbers that nobody can seed."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 2)
        self.noise = threading.get_ident

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Moody.calls += 1
        return self.body(x) + Moody.calls

    calls = 0


def bits(*models: nn.Module) -> list[Any]:
    tensors = [t for m in models for t in (*m.parameters(), *m.buffers())]
    return [(id(t), t._version, t.detach().clone().numpy().tobytes(), None if t.grad is None else id(t.grad)) for t in tensors]


def test_a_plain_model_is_copied() -> None:
    w = workload()
    ensure_faithful(w)
    assert w.borrowed is None and w.checked


@pytest.mark.parametrize(("model", "why"), [(Head, "uses Sequential from outside"), (Memory, "a copy of it computes a different loss")])
def test_a_model_without_a_faithful_copy_is_borrowed(model: type[nn.Module], why: str) -> None:
    net = model()
    before = bits(net, OUTSIDE)
    w = workload(net)
    ensure_faithful(w)
    assert w.borrowed is not None and why in w.borrowed.why and why in w.assumptions[-1].text
    assert bits(net, OUTSIDE) == before
    report = scan_workload(w, Settings(steps=12, budget=20.0))
    assert len(report.measurement.probe.losses) >= 12
    assert bits(net, OUTSIDE) == before


def test_a_model_that_never_repeats_is_no_reason_against_a_copy() -> None:
    w = workload(Moody())
    ensure_faithful(w)
    assert w.borrowed is None


@pytest.mark.parametrize("sample", ["faulty/vanishing_gradient.py", "healthy/dropout_too_strong.py"])
def test_in_place_or_on_a_copy_the_result_is_the_same(sample: str) -> None:
    reports = []
    for spill in (None, False, True):
        w = load(TargetSpec(str(README.parent / sample)))
        w.checked = True
        if spill is not None:
            w.borrowed = Borrowed([w.model], why="to compare", spill=spill)
        before = bits(w.model)
        reports.append(scan_workload(w, Settings(steps=12, budget=60.0)))
        assert bits(w.model) == before
    copied = reports[0].measurement
    for report in reports[1:]:
        lent = report.measurement
        assert copied.probe.losses == lent.probe.losses
        assert copied.layers == lent.layers and copied.parameters == lent.parameters
        assert [(f.code, f.severity, f.message) for f in reports[0].findings] == [(f.code, f.severity, f.message) for f in report.findings]


def test_a_model_that_is_too_large_to_copy_is_borrowed() -> None:
    class Large(nn.Linear):
        def __deepcopy__(self, memo: Any) -> Any:
            raise torch.OutOfMemoryError("out of memory")

    w = workload(nn.Sequential(Large(6, 2)))
    ensure_faithful(w)
    assert w.borrowed is not None and w.borrowed.spill and "too little memory" in w.borrowed.why
    before = bits(w.model)
    assert len(scan_workload(w, Settings(steps=12, budget=20.0)).measurement.probe.losses) >= 12
    assert bits(w.model) == before


def test_states_take_turns() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model.seen = []  # type: ignore[assignment]
    before = bits(model)
    borrowed = Borrowed([model])

    def train(steps: int) -> None:
        for x, y in two_clusters() * steps:
            F.cross_entropy(model(x), y).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.1 * p.grad
            model.seen.append(1)  # type: ignore[operator, union-attr]

    first = borrowed.lend()
    train(2)
    trained = model[0].weight.detach().clone()
    second = borrowed.lend()
    assert model.seen == [] and not torch.equal(model[0].weight, trained)
    train(1)
    borrowed.use(first)
    assert torch.equal(model[0].weight, trained) and len(model.seen) == 4  # type: ignore[arg-type]
    borrowed.use(second)
    assert len(model.seen) == 2  # type: ignore[arg-type]
    borrowed.give_back()
    borrowed.give_back()
    assert bits(model) == before and model.seen == []
