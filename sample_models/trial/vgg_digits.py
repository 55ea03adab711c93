"""A VGG-style net without normalization on 8x8 digits, few of them.

Expected: batch-normalization or another normalization, orthogonal-init, or a regularization such as dropout helps
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES = 200

images, labels = load_digits(return_X_y=True)  # [1797, 64] in 0..16, [1797]
inputs, targets = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
train_loader = DataLoader(TensorDataset(inputs[:SAMPLES], targets[:SAMPLES]), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(inputs[1000:], targets[1000:]), batch_size=797)
loss_fn = nn.CrossEntropyLoss()


def stage(inputs: int, outputs: int) -> list[nn.Module]:
    first, second = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
    return [first, nn.ReLU(), second, nn.ReLU(), nn.MaxPool2d(2)]


def build_model() -> nn.Module:
    return nn.Sequential(*stage(1, 8), *stage(8, 16), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
