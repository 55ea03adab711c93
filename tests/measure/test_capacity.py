"""Memory is forecast, and what cannot fit is one clear error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import gradcheck
from gradcheck.config.settings import Settings
from gradcheck.errors import TargetError
from gradcheck.instrument import graph_structure
from gradcheck.loading.objects import from_objects
from gradcheck.measure import faithful, fitting
from gradcheck.pipeline import scan_workload
from gradcheck.workload.device import free_memory, memory_of

WIDTH, ROWS = 512, 64


@pytest.fixture
def workload():
    torch.manual_seed(0)
    model = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(WIDTH, WIDTH), nn.ReLU())), nn.Linear(WIDTH, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return from_objects(model, (torch.randn(ROWS, WIDTH), torch.randint(4, (ROWS,))), loss="cross_entropy", optimizer=optimizer)


@pytest.mark.parametrize("make, copies", [(torch.optim.AdamW, 2), (torch.optim.SGD, 0), (lambda p: torch.optim.SGD(p, momentum=0.9), 1)])
def test_parameters_gradients_and_state_are_counted(make, copies):
    model = nn.Linear(100, 10)
    optimizer, size = make(model.parameters()), 4 * 1010
    forecast = memory_of(model, optimizer)
    assert (forecast.parameters, forecast.gradients, forecast.state) == (size, size, copies * size)
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    assert memory_of(model, optimizer).state == pytest.approx(copies * size, abs=16)


def test_activations_of_a_sample_are_measured(workload):
    faithful.ensure_faithful(workload)
    kept = 4 * 4 * WIDTH  # what goes into each of the four layers after the first; ReLU keeps the same
    assert workload.sample_bytes == pytest.approx(kept + 4 * WIDTH, rel=0.05)


def test_batches_that_cannot_fit_are_an_error_that_says_what_would(workload, monkeypatch):
    faithful.ensure_faithful(workload)
    fixed = memory_of(workload.model, workload.optimizer).fixed
    monkeypatch.setattr(fitting, "SMALL", 0)
    monkeypatch.setattr(fitting, "free_memory", lambda device: fixed + int(10.5 * workload.sample_bytes))
    with pytest.raises(TargetError, match="cannot hold a training") as caught:
        fitting.require_memory(workload)
    assert "batches of 10 samples would fit" in caught.value.hint and "checkpoint" in caught.value.hint


def test_a_model_that_cannot_fit_is_refused_before_it_is_copied(workload, monkeypatch):
    monkeypatch.setattr(fitting, "SMALL", 0)
    monkeypatch.setattr(fitting, "free_memory", lambda device: 1000)
    with pytest.raises(TargetError, match="cannot hold a training") as caught:
        gradcheck.scan(workload.model, workload.batches, loss="cross_entropy", optimizer=workload.optimizer)
    assert "bf16" in caught.value.hint and "--init-only" in caught.value.hint


def test_a_device_without_room_for_a_copy_trains_the_model_itself(workload, monkeypatch):
    pretended = replace(workload, device=torch.device("cuda"), checked=False)
    monkeypatch.setattr(faithful, "free_memory", lambda device: memory_of(workload.model, workload.optimizer).fixed - 1)
    faithful.ensure_faithful(pretended)
    assert pretended.borrowed is not None and pretended.borrowed.spill


def test_profile_tells_the_forecast(workload):
    report = scan_workload(workload, Settings(profile=True, fast=True))
    assert any(a.about == "memory" and "of activations" in a.text for a in report.measurement.assumptions)


def test_the_free_memory_of_this_machine_is_known():
    free = free_memory(torch.device("cpu"))
    assert free is None or free > 1e8


def test_deep_graphs_that_were_walked_are_freed(monkeypatch):
    monkeypatch.setattr(graph_structure, "DEEP", 10)
    x = torch.ones(2, requires_grad=True)
    y = x
    for _ in range(20):
        y = torch.tanh(y)
    assert [leaf is x for leaf in graph_structure.upstream_leaves([y.grad_fn])] == [True]
    assert graph_structure._walked
    del y
    graph_structure.release_graphs()
    assert not graph_structure._walked
