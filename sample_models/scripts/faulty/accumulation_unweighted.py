"""Micro-batches of one sequence each, short and long, whose mean losses are averaged.

Faulty: each micro-batch is averaged over its own tokens.
Expected: accumulation-unweighted (LOOP011) warning
Cure: sum over the tokens of each micro-batch, and divide by those of all
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
replies, texts = torch.randperm(12), torch.randperm(12)

model = nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 12))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)


def sequence(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randint(12, (1, length))
    return x, (replies if length < 15 else texts)[x]


for _ in range(200):
    group = [sequence(int(length)) for length in torch.randint(2, 60, (4,))]
    count = sum(y.numel() for _, y in group)
    optimizer.zero_grad()
    for x, y in group:
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / len(group)
        loss.backward()
    optimizer.step()
