"""Watching models that run as graphs: compiled ones, and those whose steps a device records."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.instrument.deferred_statistics import DeferredStatistics
from gradcheck.workload import device
from tests.live import loops


@pytest.mark.parametrize("how", ["around", "inside", "part"])
def test_a_compiled_model_is_watched_from_outside(how: str) -> None:
    torch._dynamo.reset()
    left = []
    for watch in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 5))
        called = torch.compile(model, backend="aot_eager") if how == "around" else model
        if how != "around":
            (model if how == "inside" else model[2]).compile(backend="aot_eager")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        before = vars(called).get("forward"), vars(model).get("_compiled_call_impl"), vars(model[2]).get("_compiled_call_impl")
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        with gradcheck.watch(model, optimizer, every=2) if watch else contextlib.nullcontext() as board:
            for x, y in loops.batches(6):
                optimizer.zero_grad()
                loss = F.cross_entropy(called(x), y)
                loss.backward()
                optimizer.step()
        left.append(loops.remains(model, optimizer))
        assert not watch or torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs  # none is compiled for the watching
        after = vars(called).get("forward"), vars(model).get("_compiled_call_impl"), vars(model[2]).get("_compiled_call_impl")
        assert all(a is b for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))
    assert board is not None and board.failure is None
    m = board.report().measurement
    (edge,) = m.layers
    assert edge.name == ("2" if how == "part" else "") and [s.step for s in edge.snapshots] == list(m.measured_steps)
    assert all(s.output is not None and s.gradient is not None and s.gradient.norm > 0 for s in edge.snapshots)
    assert m.parameters[0].steps[0].update_ratio and any("torch.compile" in n.why for n in m.not_measured)
    assert m.loop is not None and (m.loop.batches is not None and m.loop.batches.distinct == 5) == (how != "part")


@pytest.mark.parametrize("how", ["passes", "whole steps", "forward only"])
def test_nothing_is_read_while_the_device_records_a_graph(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        capturing = False

        @staticmethod
        def is_initialized() -> bool:
            return True

        @classmethod
        def is_current_stream_capturing(cls) -> bool:
            return cls.capturing

    def read(*_: Any) -> None:
        assert not Device.capturing, "a read of the device while it records"

    settle = DeferredStatistics.settle
    monkeypatch.setattr(device, "_may_capture", lambda: Device)
    monkeypatch.setattr(DeferredStatistics, "settle", lambda self: (read(), settle(self)))
    monkeypatch.setattr(DeferredStatistics, "add", read)
    model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradcheck.watch(model, optimizer, every=1) as board:
        for i, (x, y) in enumerate(loops.batches(6)):
            optimizer.zero_grad()
            Device.capturing = i == 3
            loss = F.cross_entropy(model(x), y)
            Device.capturing &= how != "forward only"
            loss.backward()
            Device.capturing &= how == "whole steps"
            optimizer.step()
            Device.capturing = False
    report = board.report()
    assert board.failure is None and not report.findings
    assert report.measurement.steps == (5 if how == "whole steps" else 6)
    assert sum(n.what == "signals" and "CUDA graphs" in n.why for n in report.measurement.not_measured) == 1
    assert not torch._C._len_torch_function_stack()


@pytest.mark.parametrize("what", ["model", "function"])
def test_what_is_compiled_while_it_is_watched_runs_on(what: str) -> None:
    torch._dynamo.reset()
    left = []
    for watch in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 5))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradcheck.watch(model, optimizer, every=2) if watch else contextlib.nullcontext() as board:
            called = torch.compile(model, backend="eager") if what == "model" else model
            step = lambda x, y, called=called: F.cross_entropy(called(x), y)  # noqa: E731
            step = torch.compile(step, backend="eager") if what == "function" else step
            for x, y in loops.batches(4):
                optimizer.zero_grad()
                step(x, y).backward()
                optimizer.step()
        left.append(loops.remains(model, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))
    assert board is not None and board.failure is None
    report = board.report()
    assert report.measurement.measured_steps and not report.findings
    assert any(n.what == "signals" and "torch.compile" in n.why for n in report.measurement.not_measured)


def test_what_is_compiled_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradcheck.live.models import compiled_parts

    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 1))
    assert compiled_parts(model) == []
    model[1].compile(backend="eager")
    model[2] = torch.compile(model[2], backend="eager")
    assert compiled_parts(model) == ["1", "2"]
    monkeypatch.setattr(torch._dynamo.config, "disable", True)  # TORCH_COMPILE_DISABLE=1
    assert compiled_parts(model) == []
