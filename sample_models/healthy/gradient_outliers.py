"""A regression whose samples weigh about the same."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 32

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(512, FEATURES, generator=generator)
targets = inputs @ torch.randn(FEATURES, 1, generator=generator) / FEATURES**0.5
train_loader = DataLoader(TensorDataset(inputs, targets), batch_size=64)
loss_fn = nn.MSELoss()


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 1))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)
