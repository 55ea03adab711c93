"""All units of the hidden layer start with the same random weights.

Faulty: the generator is seeded again for every row, so all rows are alike: 64 units are worth one, and stay so.
Expected: symmetric-units (INIT006) error
Cure: `manual_seed(0)` -> `manual_seed(row)`
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


def initialize(layer: nn.Linear) -> None:
    with torch.no_grad():
        for row in range(layer.out_features):
            layer.weight[row].normal_(0.0, 0.1, generator=torch.Generator().manual_seed(0))
        layer.bias.zero_()


def build_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    initialize(model[0])
    nn.init.zeros_(model[2].weight)
    return model


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
