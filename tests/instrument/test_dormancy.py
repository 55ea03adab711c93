"""Magnitudes of units against a slow second look, and dormant units end to end."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.instrument.unit_activity import magnitudes


@pytest.mark.parametrize(("shape", "axis"), [((32, 7), 1), ((4, 5, 7), 2), ((4, 7, 5, 3), 1), ((2, 7, 0, 3), 1)])
def test_magnitudes_are_means_over_samples_and_positions(shape, axis):
    x = torch.randn(shape)
    slow = torch.stack([x.select(axis, i).abs().mean() for i in range(shape[axis])])
    torch.testing.assert_close(magnitudes(x, axis)[0], slow, equal_nan=True)


def test_large_tensors_are_sampled_evenly():
    x = torch.randn(64, 8, 40, 40) + torch.arange(8.0).view(8, 1, 1)
    assert torch.allclose(magnitudes(x, 1)[0], x.abs().mean((0, 2, 3)), rtol=0.1)
    rows = x.permute(0, 2, 3, 1).contiguous()
    assert torch.allclose(magnitudes(rows, 3)[0], x.abs().mean((0, 2, 3)), rtol=0.1)


@pytest.mark.parametrize(("asleep", "share"), [(0, 0.0), (12, 0.75)])
def test_units_that_say_little_beside_the_others_are_counted(asleep, share):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].bias[:asleep] = -20.0
        model[0].bias[asleep:] = 1.0
    batches = [(torch.randn(32, 8), torch.randint(3, (32,))) for _ in range(4)]
    report = gradcheck.scan(
        model, batches, loss=F.cross_entropy, optimizer=torch.optim.SGD(model.parameters(), 1e-3), steps=8, config={"select": ["ACT007"]}
    )
    found = next(x.dormancy for x in report.measurement.layers if x.function == "gelu")
    assert (found.units, found.dormant / found.units, found.at_start / found.units, found.samples) == (16, share, share, 128)
    assert report.findings == ()  # they were so from the start
