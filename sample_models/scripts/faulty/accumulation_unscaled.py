"""Accumulated gradients that are not averaged.

Faulty: the gradient of a step is that of four batches, added up.
Expected: accumulation-unscaled (LOOP006) warning
Cure: divide the loss by 4
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

model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

for _ in range(20):
    for i, (x, y) in enumerate(loader, 1):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        if i % 4 == 0:
            optimizer.step()
            optimizer.zero_grad()
