"""The encoder's output is detached.

Faulty: no gradient passes `.detach()`: the encoder keeps its random weights while the loss falls anyway, thanks
    to the head.
Expected: disconnected-parameters (GRAPH001) error
Cure: drop `.detach()`
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


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, FEATURES] -> [N, CLASSES]
        features = self.encoder(x).detach()
        return self.head(features)


def build_model() -> nn.Module:
    return Net()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
