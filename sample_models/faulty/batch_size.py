"""A batch of 2048 samples for a linear classifier whose gradient is hardly noisy.

Faulty: a fiftieth of the batch gives nearly the same gradient: most of the work of each step is wasted.
Expected: batch-size (OPT006) info
Cure: batch size 2048 -> 64
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 32, 10

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)
labels = torch.randint(CLASSES, (4096,), generator=generator)
inputs = means[labels] + torch.randn(4096, FEATURES, generator=generator)
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=2048, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, CLASSES))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1.5e-3)
