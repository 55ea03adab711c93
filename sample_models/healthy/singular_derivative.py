"""The healthy twin of faulty/singular_derivative.py: a small constant keeps the slope finite."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 32, 10

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)
labels = torch.randint(CLASSES, (512,), generator=generator)
left = means[labels] + torch.randn(512, FEATURES, generator=generator)
partner = torch.where(torch.arange(512) % 2 == 0, torch.arange(512), torch.randperm(512, generator=generator))
same = (labels == labels[partner]).float()  # every other sample is paired with itself
train_loader = DataLoader(TensorDataset(left, left[partner], same), batch_size=64, shuffle=True)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, 16))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:  # [N, FEATURES] twice -> [N]
        squared = ((self.embed(left) - self.embed(right)) ** 2).sum(dim=1)
        return torch.sqrt(squared + 1e-6)


def build_model() -> nn.Module:
    return Siamese()


def loss_fn(distance: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    return (same * distance**2 + (1 - same) * F.relu(2.0 - distance) ** 2).mean()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
