"""Ten sigmoid layers on digits: the gradient does not reach the first ones.

Expected: replace-activation or a normalization helps most
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LAYERS, WIDTH = 10, 64

images, labels = load_digits(return_X_y=True)  # [1797, 64] in 0..16, [1797]
inputs, targets = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
train_loader = DataLoader(TensorDataset(inputs[:1400], targets[:1400]), batch_size=64, shuffle=True)
val_loader = DataLoader(TensorDataset(inputs[1400:], targets[1400:]), batch_size=397)
loss_fn = nn.CrossEntropyLoss()


def build_model() -> nn.Module:
    hidden = [part for _ in range(LAYERS) for part in (nn.Linear(WIDTH, WIDTH), nn.Sigmoid())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 10))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
