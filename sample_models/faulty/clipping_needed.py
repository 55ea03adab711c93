"""A recurrent net of rectifiers without gradient clipping.

Faulty: a few steps have gradients ten times the usual size, and undo what the steps before them learned.
Expected: clipping-needed (CLIP001) warning
Cure: max_grad_norm None -> 1.0
"""

from __future__ import annotations

import torch
from torch import nn

FEATURES, HIDDEN, STEPS, LAST = 4, 32, 30, 5

generator = torch.Generator().manual_seed(0)
inputs = [torch.randn(32, STEPS, FEATURES, generator=generator) for _ in range(8)]
train_loader = [[x, x[:, -LAST:, 0].sum(1, keepdim=True) / LAST**0.5] for x in inputs]
loss_fn = nn.MSELoss()

# The training loop calls clip_grad_norm_(model.parameters(), max_grad_norm) between backward and step.
max_grad_norm = None


class Net(nn.Module):
    """A recurrent net of rectifiers whose states neither fade nor grow at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(FEATURES, HIDDEN, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(HIDDEN, 1)
        nn.init.orthogonal_(self.rnn.weight_hh_l0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(x)
        return self.head(states[:, -1])


def build_model() -> nn.Module:
    return Net()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)
