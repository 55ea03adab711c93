"""Softmax over a single output unit.

Faulty: a softmax over one number is always 1: the output is constant and its gradient exactly zero.
Expected: output-loss-mismatch (LOSS001) error
Cure: `nn.Softmax(dim=1)` -> `nn.Sigmoid()`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 16

generator = torch.Generator().manual_seed(0)
teacher = torch.randn(FEATURES, 1, generator=generator)
inputs = torch.randn(512, FEATURES, generator=generator)
labels = (inputs @ teacher > 0).float()  # [512, 1]
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.BCELoss()


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 64),
        nn.ReLU(),
        nn.Linear(64, 1),
        nn.Softmax(dim=1),
    )


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
