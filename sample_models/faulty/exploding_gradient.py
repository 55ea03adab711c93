"""A plain net of twelve layers with standard normal weights.

Faulty: weights of std 1 multiply signal and gradient by 5 to 6 in each layer: the first loss is beyond 1e6 and the
    first step ruins the weights.
Expected: exploding-gradient (GRAD002) error
Cure: std 1.0 -> (2 / fan_in) ** 0.5 (He)
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


def linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=1.0)
    nn.init.zeros_(layer.bias)
    return layer


def build_model() -> nn.Module:
    layers: list[nn.Module] = [linear(FEATURES, 64), nn.ReLU()]
    for _ in range(11):
        layers += [linear(64, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, CLASSES))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
