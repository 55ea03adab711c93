"""Raw features, one of them an income among numbers near 1.

Faulty: the income is tens of thousands of times larger than the rest: it alone decides what the net computes and how
    far a step goes.
Expected: unscaled-input (DATA001) error
Cure: `raw` -> `(raw - raw.mean(dim=0)) / raw.std(dim=0)`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 32, 10

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)
labels = torch.randint(CLASSES, (512,), generator=generator)
raw = means[labels] + torch.randn(512, FEATURES, generator=generator)
raw[:, 0] = 40_000 + 10_000 * raw[:, 0]  # income
inputs = raw
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
