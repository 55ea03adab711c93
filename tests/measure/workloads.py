"""Small workloads for the tests of measuring."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.workload.workload import TrainingStep, Workload


def cross_entropy_step(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def two_clusters(batches: int = 2, size: int = 16, features: int = 6) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Samples of two classes, told apart by their mean."""
    generator = torch.Generator().manual_seed(3)
    result = []
    for _ in range(batches):
        labels = torch.randint(2, (size,), generator=generator)
        result.append((torch.randn(size, features, generator=generator) + 2.0 * labels[:, None], labels))
    return result


def classifier() -> nn.Module:
    """With all that a scan could disturb: normalization, dropout, a frozen layer, a layer in evaluation mode."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)
    )
    model[4].requires_grad_(False)
    model[1].eval()
    return model


def workload(
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    step: TrainingStep = cross_entropy_step,
    batches: Any = None,
) -> Workload:
    model = model if model is not None else classifier()
    optimizer = optimizer if optimizer is not None else torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Workload("test", model, batches if batches is not None else two_clusters(), step, optimizer)
