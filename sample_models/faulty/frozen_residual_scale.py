"""A residual net whose branches are scaled by a zero that cannot be learned.

Faulty: ReZero starts each branch at scale 0 and learns the scale. Here the scale is a buffer: it stays 0, so no branch
    is ever used or trained, and the net stays linear.
Expected: zero-gradient (GRAD004) warning
Cure: `self.register_buffer("scale", torch.zeros(1))` -> `self.scale = nn.Parameter(torch.zeros(1))`
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


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.register_buffer("scale", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, D] -> [N, D]
        return x + self.scale * self.branch(x)


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), *[Block(64) for _ in range(6)], nn.Linear(64, CLASSES))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
