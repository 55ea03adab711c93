"""A loss that is made again from its number.

Faulty: `.item()` cuts the loss off from the model.
Expected: disconnected-parameters (GRAPH001) error
Cure: keep the tensor
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
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for _ in range(10):
    for x, y in loader:
        output = model(x)
        loss = F.cross_entropy(output, y) + 1e-3 * output.pow(2).mean()
        loss = torch.tensor(loss.item(), requires_grad=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
