"""A classifier trained in float16 whose loss is divided by a thousand times the batch.

Faulty: the smallest float16 is 6e-8; most gradients of the hidden layer are smaller and become 0.
Expected: half-underflow (NUM004) warning
Cure: `loss / 64000` -> `loss * 1024`, and Adam moves on as before
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 16, 4

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)
labels = torch.randint(CLASSES, (512,), generator=generator)
inputs = means[labels] + torch.randn(512, FEATURES, generator=generator)
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def compute_loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    inputs, target = batch
    with torch.autocast("cpu", dtype=torch.float16):
        loss = F.cross_entropy(model(inputs), target)
    return loss / 64000


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
