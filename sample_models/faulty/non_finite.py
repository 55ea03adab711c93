"""The logarithm of a scale that may be negative.

Faulty: the net predicts a mean and a scale; a linear layer's output is negative for about half of the samples, and its
    logarithm is NaN.
Expected: non-finite (NUM001) error
Cure: `torch.log(self.scale(h))` -> `torch.log(F.softplus(self.scale(h)) + 1e-3)`
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
targets = inputs @ teacher + 0.8 * torch.randn(512, 1, generator=generator)  # [512, 1]
train_loader = DataLoader(TensorDataset(inputs, targets), batch_size=64, shuffle=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(FEATURES, 64)
        self.mean = nn.Linear(64, 1)
        self.scale = nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [N, FEATURES] -> [N, 1], [N, 1]
        h = F.relu(self.body(x))
        return self.mean(h), torch.log(self.scale(h))


def build_model() -> nn.Module:
    return Net()


def loss_fn(output: tuple[torch.Tensor, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
    mean, log_scale = output
    return (log_scale + 0.5 * ((target - mean) / torch.exp(log_scale)) ** 2).mean()  # normal, without its constant


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
