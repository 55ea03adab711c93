"""A plain net of twelve layers with torch's default initialisation.

Faulty: nn.Linear draws its weights for a gain of 0.58, ReLU needs 1.4: over twelve layers without normalisation or
    skips the gradient dies.
Expected: vanishing-gradient (GRAD001) error; default-initialization (INIT007) warning
Cure: add `nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")`
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


def block(inputs: int, outputs: int) -> nn.Sequential:
    linear = nn.Linear(inputs, outputs)
    return nn.Sequential(linear, nn.ReLU())


def build_model() -> nn.Module:
    return nn.Sequential(block(FEATURES, 64), *[block(64, 64) for _ in range(11)], nn.Linear(64, CLASSES))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
