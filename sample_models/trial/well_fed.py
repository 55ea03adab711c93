"""A small net with plenty of samples of a smooth rule: there is nothing to cure.

Expected: no difference
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 8

generator = torch.Generator().manual_seed(0)
rule = torch.randn(FEATURES, 1, generator=generator) / FEATURES**0.5


def drawn(count: int) -> TensorDataset:
    x = torch.randn(count, FEATURES, generator=generator)
    return TensorDataset(x, torch.sin(x @ rule) + 0.2 * torch.randn(count, 1, generator=generator))


train_loader = DataLoader(drawn(8192), batch_size=64, shuffle=True)
val_loader = DataLoader(drawn(2048), batch_size=512)
loss_fn = nn.MSELoss()


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
