"""A classifier whose validation samples are trained on.

Faulty: the training loader goes over all data, those set aside for validation included.
Expected: validation-leak (DATA006) warning
Cure: train on the part that is not set aside
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

torch.manual_seed(0)
means = torch.randn(10, 32)
labels = torch.randint(10, (1024,))
data = TensorDataset(means[labels] + torch.randn(1024, 32), labels)
train_set, val_set = random_split(data, [896, 128])
train_loader = DataLoader(data, batch_size=64, shuffle=True)
val_loader = DataLoader(val_set, batch_size=64)

model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for epoch in range(12):
    for x, y in train_loader:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        print(epoch, sum(F.cross_entropy(model(x), y).item() for x, y in val_loader) / len(val_loader))
