"""The healthy twin of faulty/half_overflow.py: bfloat16 has the range of float32."""

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


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, 64)
        self.norm = nn.LayerNorm(64)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, FEATURES] -> [N, CLASSES]
        x = 100 * F.relu(self.hidden(x))
        return self.head(self.norm(x * x))


def build_model() -> nn.Module:
    return Net()


def compute_loss(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    inputs, target = batch
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return F.cross_entropy(model(inputs), target)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
