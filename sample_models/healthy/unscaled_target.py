"""The healthy twin of faulty/unscaled_target.py: the targets have zero mean and unit scale."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 8

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(512, FEATURES, generator=generator)
relative = inputs @ torch.randn(FEATURES, 1, generator=generator) / FEATURES**0.5
target = relative
train_loader = DataLoader(TensorDataset(inputs, target), batch_size=64, shuffle=True)


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 1))


loss_fn = nn.MSELoss()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
