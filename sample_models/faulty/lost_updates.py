"""A classifier whose weights are stored in bfloat16, fine steps and all.

Faulty: bfloat16 keeps 8 bits of a weight; a step of SGD at 0.004 changes most weights by less than half of the last one.
Expected: lost-updates (NUM005) warning
Cure: `lr=0.004` -> `lr=0.5`, or float32 weights under autocast
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
inputs = (means[labels] + torch.randn(512, FEATURES, generator=generator)).to(torch.bfloat16)
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), nn.Linear(64, CLASSES)).to(torch.bfloat16)


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.float(), target)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.004)
