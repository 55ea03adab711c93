"""Tanh layers with weights so large that tanh is mostly at -1 or 1.

Faulty: beyond -2 and 2 tanh is flat: four units in five pass on next to no gradient, and the layers before them hardly
    learn.
Expected: saturated-activation (ACT001) warning
Cure: std 1.1 -> 0.11
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
        self.hidden = nn.ModuleList([nn.Linear(FEATURES, 64), nn.Linear(64, 64), nn.Linear(64, 64)])
        self.head = nn.Linear(64, CLASSES)
        for layer in self.hidden:
            nn.init.normal_(layer.weight, std=1.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, FEATURES] -> [N, CLASSES]
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.head(x)


def build_model() -> nn.Module:
    return Net()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
