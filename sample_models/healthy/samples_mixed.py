"""The healthy twin of faulty/samples_mixed.py: the first axis is the batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

FEATURES, LENGTH, CLASSES = 8, 12, 4

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, LENGTH, FEATURES, generator=generator)
labels = torch.randint(CLASSES, (512,), generator=generator)
sequences = means[labels] + torch.randn(512, LENGTH, FEATURES, generator=generator)
train_loader = DataLoader(TensorDataset(sequences, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(FEATURES, 32, batch_first=True)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, LENGTH, FEATURES] -> [N, CLASSES]
        hidden, _ = self.rnn(x)
        return self.head(hidden.mean(1))


def build_model() -> nn.Module:
    return Classifier()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
