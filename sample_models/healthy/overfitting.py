"""The healthy twin of faulty/overfitting.py: more samples than the net can learn by heart."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES, SAMPLES = 32, 4, 16384

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)


def drawn(count: int) -> TensorDataset:
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return TensorDataset(means[labels] + 4.0 * torch.randn(count, FEATURES, generator=generator), labels)


train_loader = DataLoader(drawn(SAMPLES), batch_size=64, shuffle=True)
val_loader = DataLoader(drawn(512), batch_size=64)
loss_fn = nn.CrossEntropyLoss()


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 128), nn.ReLU(), nn.Linear(128, CLASSES))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
