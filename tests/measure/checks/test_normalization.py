"""Running statistics against batch statistics, beside the plain way to compute both."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.checks.normalization import statistics


def context(model: nn.Module) -> Any:
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(32, 6, generator=g), torch.randint(3, (32,), generator=g)) for _ in range(2)]
    trained = SimpleNamespace(model=model, loss=lambda batch: F.cross_entropy(model(batch[0]), batch[1]))
    return SimpleNamespace(trained=trained, workload=SimpleNamespace(batches=batches, model=copy.deepcopy(model)), late=False)


def net() -> nn.Module:
    torch.manual_seed(0)
    last = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), *last)
    for _ in range(5):
        model(torch.randn(32, 6))
    return model


def test_both_losses_are_those_of_the_plain_way():
    model = net()
    found, given = statistics(context(model)), context(model)
    assert found is not None
    model.eval()
    assert found.evaluated == pytest.approx(sum(given.trained.loss(b).item() for b in given.workload.batches) / 2, rel=1e-5)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d):
            m.train()
    assert found.batch == pytest.approx(sum(given.trained.loss(b).item() for b in given.workload.batches) / 2, rel=1e-5)


def test_the_shift_is_the_ratio_of_the_variances():
    model = net()
    first, batches = model[1], context(model).workload.batches
    plain = [(first.running_var / model[0](x).var(0, correction=0)).median().item() for x, _ in batches]
    found = statistics(context(model))
    assert found is not None and len(found.shifts) == 2
    assert found.shifts[0] == pytest.approx(sum(plain) / 2, rel=1e-5)


def test_it_leaves_no_trace():
    model = net()
    model[3].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    statistics(context(model))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model] == [True, True, True, False, True, True, True]


def test_models_without_running_statistics_have_none():
    assert statistics(context(nn.Sequential(nn.Linear(6, 3)))) is None
    assert statistics(context(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3)))) is None
