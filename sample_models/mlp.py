"""A plain multi-layer perceptron on ten Gaussian clusters."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 32, 10

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)
labels = torch.randint(CLASSES, (1024,), generator=generator)
inputs = means[labels] + torch.randn(1024, FEATURES, generator=generator)
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


class MLP(nn.Module):
    def __init__(self, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        widths = [FEATURES] + [width] * depth
        layers: list[nn.Module] = []
        for incoming, outgoing in pairwise(widths):
            layers += [nn.Linear(incoming, outgoing), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, FEATURES] -> [N, CLASSES]
        return self.head(self.body(x))


def build_model() -> nn.Module:
    return MLP()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)
