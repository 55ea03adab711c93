"""Ten sigmoid layers in a row.

Faulty: a sigmoid passes on at most a quarter of the gradient; after ten of them nothing is left for the first layers.
Expected: deep-sigmoid (ACT003) error; vanishing-gradient (GRAD001) error
Cure: `nn.Sigmoid()` -> `nn.ReLU()`
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


def build_model() -> nn.Module:
    layers: list[nn.Module] = []
    width = FEATURES
    for _ in range(10):
        linear = nn.Linear(width, 64)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        layers += [linear, nn.Sigmoid()]
        width = 64
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
