"""An LSTM over eighty steps whose loss sees the last state only, though the label is in the first step.

Faulty: the gradient loses 0.2 decades per step: the first step gets less than 1e-12 of the last one's, and the loss
    stays at that of guessing.
Expected: gradient-through-time (GRAD003) error
Cure: states[:, -1] -> states.amax(1), so that the loss sees every state
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LENGTH, FEATURES, CLASSES = 80, 8, 4

generator = torch.Generator().manual_seed(0)
labels = torch.randint(CLASSES, (512,), generator=generator)
inputs = torch.randn(512, LENGTH, FEATURES, generator=generator) / 10
inputs[:, 0, :CLASSES] += 3 * nn.functional.one_hot(labels, CLASSES)  # the label is in the first step
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(FEATURES, 32, batch_first=True), nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, LENGTH, FEATURES] -> [N, CLASSES]
        states, _ = self.lstm(x)
        return self.head(states[:, -1])


def build_model() -> nn.Module:
    return Net()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=5e-3)
