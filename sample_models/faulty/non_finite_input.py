"""A table with missing values, read as NaN.

Faulty: one NaN in a batch makes the loss NaN, and from the first step on all weights.
Expected: non-finite-input (DATA002) error
Cure: `table` -> `torch.nan_to_num(table)`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 32, 10

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)
labels = torch.randint(CLASSES, (512,), generator=generator)
table = means[labels] + torch.randn(512, FEATURES, generator=generator)
table[torch.rand(512, FEATURES, generator=generator) < 0.01] = float("nan")  # missing values
inputs = table
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
