"""A linear rule whose targets were read wrongly now and then: a few samples send the gradient through the roof.

Expected: clip-gradient-norm, adaptive-gradient-clipping, clip-gradient-value or lower-learning-rate helps most
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, SAMPLES, MISREAD = 16, 2048, 0.002

generator = torch.Generator().manual_seed(0)
rule = torch.randn(FEATURES, 1, generator=generator) / FEATURES**0.5


def drawn(count: int, misread: float) -> TensorDataset:
    x = torch.randn(count, FEATURES, generator=generator)
    y = torch.tanh(x @ rule) + 0.1 * torch.randn(count, 1, generator=generator)
    spikes = torch.rand(count, 1, generator=generator) < misread
    return TensorDataset(x, torch.where(spikes, 200 * torch.randn(count, 1, generator=generator), y))


train_loader = DataLoader(drawn(SAMPLES, MISREAD), batch_size=32, shuffle=True)
val_loader = DataLoader(drawn(1024, 0.0), batch_size=256)
loss_fn = nn.MSELoss()


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, 1))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)
