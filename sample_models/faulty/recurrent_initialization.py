"""An LSTM whose forget gates start shut.

Faulty: sigmoid(-3) = 0.05: each step forgets all but a twentieth of the state, and the gradient with it.
Expected: recurrent-initialization (INIT004) warning
Cure: forget bias -3 -> 1
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

LENGTH, FEATURES, CLASSES = 40, 8, 4

generator = torch.Generator().manual_seed(0)
labels = torch.randint(CLASSES, (512,), generator=generator)
inputs = torch.randn(512, LENGTH, FEATURES, generator=generator) / 2
inputs[:, 0, :CLASSES] += 3 * nn.functional.one_hot(labels, CLASSES)  # the label is in the first step
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(FEATURES, 32, batch_first=True), nn.Linear(32, CLASSES)
        with torch.no_grad():
            self.lstm.bias_ih_l0[32:64] = -3.0  # the forget gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, LENGTH, FEATURES] -> [N, CLASSES]
        states, _ = self.lstm(x)
        return self.head(states.mean(1))


def build_model() -> nn.Module:
    return Net()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)
