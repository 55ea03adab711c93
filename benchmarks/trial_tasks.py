"""Trainings whose right remedy is known, redrawn for every seed: what a trial should conclude is beside each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

Batches = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Task:
    model: nn.Module
    data: Batches
    val: Batches
    loss: Callable[[Any, Any], torch.Tensor]
    optimizer: torch.optim.Optimizer


def _batches(x: torch.Tensor, y: torch.Tensor, size: int) -> Batches:
    return list(zip(x.split(size), y.split(size), strict=True))


def sparse_linear(seed: int) -> Task:
    """Five of fifty features matter; sixty samples."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.zeros(50, 1)
    truth[torch.randperm(50, generator=g)[:5]] = 2 * torch.randn(5, 1, generator=g).sign()

    def drawn(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 50, generator=g)
        return x, x @ truth + torch.randn(n, 1, generator=g)

    torch.manual_seed(seed)
    model = nn.Linear(50, 1)
    return Task(model, _batches(*drawn(60), 20), _batches(*drawn(500), 250), F.mse_loss, torch.optim.Adam(model.parameters(), 1e-2))


def noisy_few(seed: int) -> Task:
    """Eighty samples of four classes, a quarter of them mislabelled, and a net that can learn them by heart."""
    g = torch.Generator().manual_seed(seed)
    means = 1.2 * torch.randn(4, 20, generator=g)

    def drawn(n: int, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(4, (n,), generator=g)
        x = means[labels] + 1.5 * torch.randn(n, 20, generator=g)
        wrong = torch.rand(n, generator=g) < noise
        return x, torch.where(wrong, torch.randint(4, (n,), generator=g), labels)

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
    val = _batches(*drawn(600, 0.0), 300)
    return Task(model, _batches(*drawn(80, 0.25), 20), val, F.cross_entropy, torch.optim.Adam(model.parameters(), 2e-3))


def deep_sigmoid(seed: int) -> Task:
    """Twelve sigmoid layers: only an activation or a normalization lets the gradient through."""
    g = torch.Generator().manual_seed(seed)
    means = 1.5 * torch.randn(6, 24, generator=g)

    def drawn(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(6, (n,), generator=g)
        return means[labels] + torch.randn(n, 24, generator=g), labels

    torch.manual_seed(seed)
    layers = [part for i in range(12) for part in (nn.Linear(24 if i == 0 else 48, 48), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(48, 6))
    return Task(model, _batches(*drawn(1024), 64), _batches(*drawn(512), 256), F.cross_entropy, torch.optim.Adam(model.parameters(), 1e-3))


def spiky(seed: int) -> Task:
    """Every five-hundredth target is far off: one batch in sixteen has a gradient through the roof."""
    g = torch.Generator().manual_seed(seed)
    rule = torch.randn(12, 1, generator=g) / 12**0.5

    def drawn(n: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 12, generator=g)
        y = torch.sin(2 * x @ rule) + 0.1 * torch.randn(n, 1, generator=g)
        return x, torch.where(torch.rand(n, 1, generator=g) < share, 150 * torch.randn(n, 1, generator=g), y)

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    return Task(model, _batches(*drawn(2048, 0.002), 32), _batches(*drawn(1024, 0.0), 256), F.mse_loss, optimizer)


def well_fed(seed: int) -> Task:
    """Thousands of samples of a smooth rule for a small net: nothing is to be cured."""
    g = torch.Generator().manual_seed(seed)
    rule = torch.randn(8, 1, generator=g) / 8**0.5

    def drawn(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 8, generator=g)
        return x, torch.sin(x @ rule) + 0.3 * torch.randn(n, 1, generator=g)

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    return Task(model, _batches(*drawn(8192), 64), _batches(*drawn(2048), 512), F.mse_loss, torch.optim.Adam(model.parameters(), 2e-3))


# Noise on the inputs is one of them: C. Bishop, "Training with noise is equivalent to Tikhonov regularization", 1995.
REGULARIZING = ("dropout", "l1", "l2", "elastic-net", "early-stopping", "label-smoothing", "mixup", "input-noise")
CLIPPING = ("clip-gradient-norm", "clip-gradient-value", "adaptive-gradient-clipping")
OPENING = (
    "replace-activation",
    "insert-normalization",
    "batch-normalization",
    "layer-normalization",
    "group-normalization",
    "batch-free-normalization",
)

# Task -> (how to draw it, what may be on top; empty: no remedy may be said to help).
TASKS: dict[str, tuple[Callable[[int], Task], tuple[str, ...]]] = {
    "sparse-linear": (sparse_linear, ("l1", "elastic-net")),
    "noisy-few": (noisy_few, REGULARIZING),
    "deep-sigmoid": (deep_sigmoid, OPENING),
    "spiky": (spiky, CLIPPING),
    "well-fed": (well_fed, ()),
}
