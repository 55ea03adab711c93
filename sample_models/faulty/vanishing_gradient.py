"""A plain net of fourteen layers, its weights drawn a good deal too small.

Faulty: weights of std 0.05 give a gain of 0.4 where ReLU needs 1.4: every layer shrinks signal and gradient by more
    than two thirds.
Expected: vanishing-gradient (GRAD001) error; signal-gain (INIT001) warning
Cure: std 0.05 -> (2 / fan_in) ** 0.5 (He)
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
    def __init__(self, depth: int = 14, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Linear(FEATURES, width)
        self.body = nn.ModuleList([nn.Linear(width, width) for _ in range(depth - 1)])
        self.head = nn.Linear(width, CLASSES)
        for layer in (self.stem, *self.body):
            nn.init.normal_(layer.weight, std=0.05)
            nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, FEATURES] -> [N, CLASSES]
        x = torch.relu(self.stem(x))
        for layer in self.body:
            x = torch.relu(layer(x))
        return self.head(x)


def build_model() -> nn.Module:
    return Net()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
