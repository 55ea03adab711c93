"""The healthy twin of faulty/output_bias_off_prior.py: the output starts at the class frequencies."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 16

generator = torch.Generator().manual_seed(0)
labels = (torch.rand(1024, generator=generator) < 0.05).long()
inputs = torch.randn(1024, FEATURES, generator=generator) + 1.5 * labels[:, None]
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)


def build_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 2))
    with torch.no_grad():
        model[-1].bias.copy_(torch.tensor([0.95, 0.05]).log())
    return model


loss_fn = nn.CrossEntropyLoss()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
