"""An L1 penalty of 0.1 written into the loss.

Faulty: the penalty is twenty times the cross entropy; the loss falls because the weights shrink, and nothing is learned.
Expected: decay-too-strong (REG001) error
Cure: PENALTY 0.1 -> 1e-5
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
PENALTY = 0.1


def compute_loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    inputs, labels = batch
    penalty = sum(weight.abs().sum() for weight in model.parameters())
    return nn.functional.cross_entropy(model(inputs), labels) + PENALTY * penalty


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
