"""A plain multi-layer perceptron on scikit-learn's handwritten digits (needs scikit-learn)."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

images, labels = load_digits(return_X_y=True)  # [1797, 64] in 0..16, [1797]
inputs = torch.tensor(images, dtype=torch.float32) / 16
train_loader = DataLoader(TensorDataset(inputs, torch.tensor(labels)), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
