"""A classifier whose inputs are shuffled without their labels.

Faulty: the inputs are put in another order, the labels stay as they are.
Expected: labels-shuffled (DATA007) warning
Cure: put both in the same order
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
means = torch.randn(10, 32)
labels = torch.randint(10, (1024,))
inputs = means[labels] + torch.randn(1024, 32)
order = torch.randperm(1024)
inputs, labels = inputs[order], labels

model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for _ in range(12):
    for start in range(0, 1024, 64):
        loss = F.cross_entropy(model(inputs[start : start + 64]), labels[start : start + 64])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
