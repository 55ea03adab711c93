"""What is tried after a probe that failed."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from gradcheck.measure.experiments import Failure, other_rates
from tests.literals import run
from tests.measure.workloads import workload


@pytest.mark.parametrize(("fall", "tried"), [(0.0, [6.0]), (0.05, [6.0, 60.0])])
def test_rates_are_tried_until_one_learns_clearly_more_than_the_probe(fall, tried):
    """A rate may be so far off that it gains as little as the probe did: that explains nothing."""
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    x = torch.randn(64, 8)
    batches = [(x, x @ torch.ones(8, 1))]
    optimizer = torch.optim.SGD(model.parameters(), 5e-5)
    w = workload(model, optimizer, lambda net, batch: nn.functional.mse_loss(net(batch[0]), batch[1]), batches)
    start = nn.functional.mse_loss(model(x), batches[0][1]).item()
    probe = run([start] * 20 + [start * (1 - fall)] * 280, batches=1)
    failure = Failure(w, probe, 100, 0, None, time.perf_counter() + 60, lambda what: None)
    runs = other_rates(failure, (6.0, 60.0))
    assert [r.rate_factor for r in runs] == tried
