"""A penalty that is in the loss and in no gradient.

Faulty: the penalty is detached before it is added.
Expected: inert-loss-term (LOSS009) warning
Cure: add the penalty as it is
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
means = torch.randn(10, 32)
labels = torch.randint(10, (1024,))
inputs = means[labels] + torch.randn(1024, 32)

model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for _ in range(200):
    rows = torch.randint(1024, (64,))
    loss = F.cross_entropy(model(inputs[rows]), labels[rows])
    penalty = sum(p.abs().sum() for p in model.parameters())
    loss = loss + 1e-4 * penalty.detach()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
