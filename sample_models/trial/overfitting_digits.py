"""Few digits, a fifth of them mislabelled, for a net that can learn them all by heart.

Expected: early-stopping, dropout, l1, l2, elastic-net, label-smoothing, mixup, input-noise or a normalization helps most
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

SAMPLES, NOISE = 150, 0.2

images, labels = load_digits(return_X_y=True)  # [1797, 64] in 0..16, [1797]
generator = torch.Generator().manual_seed(0)
order = torch.randperm(len(images), generator=generator)
inputs = torch.tensor(images, dtype=torch.float32)[order] / 16
targets = torch.tensor(labels)[order]
wrong = torch.rand(SAMPLES, generator=generator) < NOISE
noisy = torch.where(wrong, torch.randint(10, (SAMPLES,), generator=generator), targets[:SAMPLES])

train_loader = DataLoader(TensorDataset(inputs[:SAMPLES], noisy), batch_size=50, shuffle=True)
val_loader = DataLoader(TensorDataset(inputs[SAMPLES:1150], targets[SAMPLES:1150]), batch_size=250)
loss_fn = nn.CrossEntropyLoss()


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
