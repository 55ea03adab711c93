"""The healthy twin of faulty/past_critical_rate.py: a rate well below the critical one."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

generator = torch.Generator().manual_seed(0)
centres = torch.randn(4, 12, generator=generator)
labels = torch.randint(4, (1024,), generator=generator)
inputs = centres[labels] + torch.randn(1024, 12, generator=generator)
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.3)
