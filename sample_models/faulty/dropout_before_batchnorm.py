"""Dropout right before a batch normalisation.

Faulty: in training the normalisation sees 2.5 times the variance of evaluation, and learns to divide by it.
Expected: dropout-before-batchnorm (NORM004) warning
Cure: drop after the last batch normalisation: `nn.BatchNorm1d(64), nn.Dropout(0.5)`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 32, 10

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)
labels = torch.randint(CLASSES, (512,), generator=generator)
inputs = means[labels] + torch.randn(512, FEATURES, generator=generator)
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


def build_model() -> nn.Module:
    last = nn.Linear(64, CLASSES)
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(64), last)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
