"""The healthy twin of faulty/half_underflow.py: the loss is scaled up, and its gradients stay in the range of float16."""

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
    return loss * 1024


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
