"""Outputs [N, 1] against targets [N].

Faulty: mse_loss broadcasts them to [N, N] and compares every output with every target: the best answer is the mean of
    all targets.
Expected: loss-domain (LOSS002) error
Cure: `output` -> `output.squeeze(1)`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 16

generator = torch.Generator().manual_seed(0)
teacher = torch.randn(FEATURES, 1, generator=generator) / FEATURES**0.5
inputs = torch.randn(512, FEATURES, generator=generator)
targets = torch.tanh(inputs @ teacher) + 0.1 * torch.randn(512, 1, generator=generator)  # [512, 1]
train_loader = DataLoader(TensorDataset(inputs, targets.squeeze(1)), batch_size=64, shuffle=True)


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 64),
        nn.Tanh(),
        nn.Linear(64, 1),
    )


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:  # [N, 1], [N]
    return F.mse_loss(output, target)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
