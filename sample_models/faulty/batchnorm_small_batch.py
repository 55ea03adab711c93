"""Batch normalisation over batches of two samples.

Faulty: mean and variance of two values leave the sign of their difference; each sample's output depends on its neighbour.
Expected: batchnorm-small-batch (NORM003) warning
Cure: train on larger batches: `batch_size=64`
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
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=2, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU())


def build_model() -> nn.Module:
    return nn.Sequential(block(FEATURES, 64), block(64, 64), nn.Linear(64, CLASSES))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
