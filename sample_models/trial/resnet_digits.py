"""A ResNet-style net with batch normalization on all 8x8 digits.

Expected: no difference
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

images, labels = load_digits(return_X_y=True)  # [1797, 64] in 0..16, [1797]
inputs, targets = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)
order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
inputs, targets = inputs[order], targets[order]
train_loader = DataLoader(TensorDataset(inputs[:1300], targets[:1300]), batch_size=64, shuffle=True)
val_loader = DataLoader(TensorDataset(inputs[1300:], targets[1300:]), batch_size=497)
loss_fn = nn.CrossEntropyLoss()


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


def build_model() -> nn.Module:
    stem = [nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()]
    return nn.Sequential(*stem, Block(12), nn.MaxPool2d(2), Block(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
