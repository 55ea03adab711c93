"""The first batch of the loader, again and again.

Faulty: a loader that does not shuffle starts again in each step.
Expected: same-batch-every-step (LOOP005) warning
Cure: `shuffle=True`
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
loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=False)

model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for _ in range(400):
    x, y = next(iter(loader))
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
