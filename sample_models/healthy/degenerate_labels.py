"""The healthy twin of faulty/degenerate_labels.py: both classes occur."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 32, 2

generator = torch.Generator().manual_seed(0)
teacher = torch.randn(FEATURES, generator=generator)
inputs = torch.randn(512, FEATURES, generator=generator)
probability = torch.sigmoid(inputs @ teacher)
labels = (probability > 0.5).long()
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
