"""Diabetes progression from ten measured features among ninety of pure noise: the truth is sparse. Linear, and with a hidden layer.

Expected: l1 or elastic-net helps most (sparse_regression.py:build_linear);
any regularization, such as l1, dropout or input-noise, helps (sparse_regression.py:build_mlp)
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NOISE_FEATURES, TRAINING = 90, 120

table, progression = load_diabetes(return_X_y=True)  # [442, 10], [442]
generator = torch.Generator().manual_seed(0)
measured = torch.tensor(table, dtype=torch.float32)
inputs = torch.cat([measured / measured.std(0), torch.randn(len(measured), NOISE_FEATURES, generator=generator)], dim=1)  # [442, 100]
target = torch.tensor(progression, dtype=torch.float32).unsqueeze(1)
target = (target - target.mean()) / target.std()
order = torch.randperm(len(inputs), generator=generator)
inputs, target = inputs[order], target[order]

train_loader = DataLoader(TensorDataset(inputs[:TRAINING], target[:TRAINING]), batch_size=40, shuffle=True)
val_loader = DataLoader(TensorDataset(inputs[TRAINING:], target[TRAINING:]), batch_size=161)
loss_fn = nn.MSELoss()


def build_linear() -> nn.Module:
    return nn.Linear(inputs.shape[1], 1)


def build_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(inputs.shape[1], 64), nn.ReLU(), nn.Linear(64, 1))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=5e-3)
