"""Strong dropout, strong weight decay and smoothed labels at once.

Faulty: together they keep the model from learning, and the loss stays at chance.
Expected: loss-not-falling (LOSS005) error; over-regularized (REG005) warning
Cure: RATE, DECAY, SMOOTHING 0.6, 0.05, 0.7 -> 0.1, 1e-4, 0.05
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, CLASSES = 32, 10
RATE, DECAY, SMOOTHING = 0.6, 0.05, 0.7

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, FEATURES, generator=generator)
labels = torch.randint(CLASSES, (512,), generator=generator)
inputs = means[labels] + torch.randn(512, FEATURES, generator=generator)
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(FEATURES, 64), nn.Linear(64, 64), nn.Linear(64, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.dropout(torch.relu(self.a(x)), RATE, self.training)
        x = nn.functional.dropout(torch.relu(self.b(x)), RATE, self.training)
        return self.c(x)


def build_model() -> nn.Module:
    return Net()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.2, weight_decay=DECAY)
