"""Weight decay on every parameter.

Faulty: the biases are pulled to zero as well, which only costs fit.
Expected: decay-on-norm-and-bias (REG002) info
Cure: decayed(model, axes=1) -> axes=2
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 32, 10

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)
labels = torch.randint(CLASSES, (512,), generator=generator)
inputs = means[labels] + torch.randn(512, FEATURES, generator=generator)
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, CLASSES),
    )


def decayed(model: nn.Module, axes: int) -> list[dict[str, object]]:
    """Two parameter groups: weight decay for parameters with at least so many axes."""
    strong = [p for p in model.parameters() if p.ndim >= axes]
    rest = [p for p in model.parameters() if p.ndim < axes]
    return [{"params": strong, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(decayed(model, axes=1), lr=3e-3)
