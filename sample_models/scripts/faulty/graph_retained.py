"""A sum of losses that keeps the graph of every step.

Faulty: the loss is added up as a tensor with its graph.
Expected: graph-retained (LOOP010) warning
Cure: add up loss.detach()
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

for epoch in range(12):
    total = torch.zeros(())
    for rows in torch.randperm(1024).split(64):
        loss = F.cross_entropy(model(inputs[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss
    print(epoch, total.item() / 16)
