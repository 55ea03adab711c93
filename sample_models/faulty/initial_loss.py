"""The output bias is set to the class counts instead of the logarithm of their shares.

Faulty: the untrained net is sure of the commonest class and wrong on all others: its loss is tens of times that of
    guessing, and Adam takes thousands of steps to undo such biases.
Expected: initial-loss (LOSS003) warning
Cure: `counts` -> `torch.log(counts / counts.sum())`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 32, 10

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)
labels = torch.multinomial(torch.linspace(1.0, 4.0, CLASSES), 1024, replacement=True, generator=generator)
inputs = means[labels] + torch.randn(1024, FEATURES, generator=generator)
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


def build_model() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(FEATURES, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )
    counts = torch.bincount(labels, minlength=CLASSES).float()
    with torch.no_grad():
        model[4].bias.copy_(counts)
    return model


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
