"""A regression of prices in whole currency units.

Faulty: the targets have mean 150 and standard deviation 75, and the output starts at 0: Adam at 0.001 needs thousands of steps to
    get there.
Expected: unscaled-target (DATA003) warning
Cure: `loss_fn(output, target)` of the raw price -> of the price minus 150, over 75
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES = 8

generator = torch.Generator().manual_seed(0)
inputs = torch.randn(512, FEATURES, generator=generator)
relative = inputs @ torch.randn(FEATURES, 1, generator=generator) / FEATURES**0.5
target = 150 + 75 * relative
train_loader = DataLoader(TensorDataset(inputs, target), batch_size=64, shuffle=True)


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 1))


loss_fn = nn.MSELoss()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
