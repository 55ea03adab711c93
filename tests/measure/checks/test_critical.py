"""The critical rate against what theory says of a quadratic loss."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck

CURVATURE = 2.0  # of mean((w x)^2) at x = 1, in w


def scan(lr: float, optimizer: Any = torch.optim.SGD, **how: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False)
    batches = [(torch.eye(4), torch.zeros(4, 1))] * 4
    made = optimizer(model.parameters(), lr=lr, **how)
    report = gradcheck.scan(model, batches, loss=F.mse_loss, optimizer=made, steps=8, config={"select": ["OPT007"]})
    return report.measurement.critical


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9, 1.2, 5.0])
def test_of_a_quadratic_loss_it_is_two_over_the_curvature(share):
    critical = 2 / (CURVATURE / 4)  # the mean over four samples, each of which sees one weight
    found = scan(share * critical)
    assert found.share == pytest.approx(share, rel=0.5) and (found.share > 1) == (share > 1)
    assert len(found.shares) == (2 if share > 1 else 1)


def test_it_ends_where_nothing_was_looked_at_any_more():
    assert scan(1e-6).share == pytest.approx(1 / 256)


def test_optimizers_that_evaluate_the_loss_themselves_are_left_out():
    assert scan(1.0, torch.optim.LBFGS) is None


def test_the_direction_is_that_of_the_own_update():
    adam = scan(1e-3, torch.optim.Adam)
    assert adam.share < 0.1 and math.isfinite(adam.share)


class Noting(nn.Linear):
    held: ClassVar[list[bool]] = []  # whether there were gradients while the loss was looked at further ahead

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and not torch.is_grad_enabled():
            self.held.append(self.weight.grad is not None)
        return super().forward(x)


def test_no_gradients_are_held_beside_the_update():
    model, batches = Noting(4, 1, bias=False), [(torch.eye(4), torch.zeros(4, 1))] * 4
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    gradcheck.scan(model, batches, loss=F.mse_loss, optimizer=optimizer, steps=8, config={"select": ["OPT007"]})
    assert Noting.held and not any(Noting.held)
