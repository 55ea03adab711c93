"""Small trainings with known answers, quick enough for tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.loading.objects import from_objects
from gradcheck.workload.workload import Workload


@dataclass
class Problem:
    model: nn.Module
    data: list[Any]
    loss: Any
    optimizer: torch.optim.Optimizer
    val: list[Any] | None = None

    def workload(self) -> Workload:
        return from_objects(self.model, self.data, loss=self.loss, optimizer=self.optimizer, val_data=self.val, batches=512)


def batched(x: torch.Tensor, y: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def sparse_linear(seed: int = 0, given: bool = True) -> Problem:
    """Six of sixty features matter, and there are as many samples as features."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.zeros(60, 1)
    truth[:6] = 1.0

    def drawn(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, 60, generator=g)
        return x, x @ truth + torch.randn(count, 1, generator=g)

    torch.manual_seed(seed)
    model = nn.Linear(60, 1)
    val = batched(*drawn(400), 100) if given else None
    return Problem(model, batched(*drawn(64), 32), F.mse_loss, torch.optim.Adam(model.parameters(), 2e-2), val)


def classes(samples: int = 96, size: int = 16, seed: int = 0) -> Problem:
    """Three clouds that overlap; no validation data."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (samples,), generator=g)
    x = torch.randn(3, 8, generator=g)[labels] + torch.randn(samples, 8, generator=g)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    return Problem(model, batched(x, labels, size), F.cross_entropy, torch.optim.Adam(model.parameters(), 1e-2))


def diverging(seed: int = 0) -> Problem:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(256, 10, generator=g)
    y = x.sum(1, keepdim=True)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    return Problem(
        model, batched(x[:192], y[:192], 32), F.mse_loss, torch.optim.SGD(model.parameters(), 5.0), batched(x[192:], y[192:], 32)
    )
