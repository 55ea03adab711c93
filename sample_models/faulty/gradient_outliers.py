"""A regression in which the target of one sample is in other units than the rest.

Faulty: the gradient of that sample is tens of times that of the others, and decides where the step goes.
Expected: gradient-outliers (GRAD005) info
Cure: bring the target to the units of the others
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 32

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(512, FEATURES, generator=generator)
targets = inputs @ torch.randn(FEATURES, 1, generator=generator) / FEATURES**0.5
targets[7] = 30.0  # in other units than the rest
train_loader = DataLoader(TensorDataset(inputs, targets), batch_size=64)
loss_fn = nn.MSELoss()


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 1))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)
