"""Clipping after the step.

Faulty: the gradients have been used when they are clipped.
Expected: clipping-misplaced (LOOP002) error
Cure: clip between backward pass and step: `clip_grad_norm_` before `optimizer.step()`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
means = torch.randn(10, 32)
labels = torch.randint(10, (1024,))
inputs = means[labels] + torch.randn(1024, 32)
loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, last = self.rnn(x.view(-1, 8, 4))
        return self.head(last[0])


model = Reader()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(10):
    for x, y in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
