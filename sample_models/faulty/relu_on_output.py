"""A ReLU on the output of a regression whose targets are negative half of the time.

Faulty: the net cannot say a negative number, and where its ReLU is shut no gradient tells it so.
Expected: output-loss-mismatch (LOSS001) error
Cure: drop the last `nn.ReLU()`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 16

generator = torch.Generator().manual_seed(0)
teacher = torch.randn(FEATURES, 1, generator=generator) / FEATURES**0.5
inputs = torch.randn(512, FEATURES, generator=generator)
targets = torch.tanh(inputs @ teacher) + 0.1 * torch.randn(512, 1, generator=generator)  # [512, 1]
train_loader = DataLoader(TensorDataset(inputs, targets), batch_size=64, shuffle=True)
loss_fn = nn.MSELoss()


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 64),
        nn.Tanh(),
        nn.Linear(64, 1),
        nn.ReLU(),
    )


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
