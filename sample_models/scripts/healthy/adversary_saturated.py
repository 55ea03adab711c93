"""A healthy training script: a GAN whose loss does not saturate catches up with a fast discriminator."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)


def net(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, outputs))


generator, discriminator = net(4, 2), net(2, 1)
slow = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.5, 0.999))
fast = torch.optim.Adam(discriminator.parameters(), lr=1e-2, betas=(0.5, 0.999))
points = F.normalize(torch.randn(1024, 2), dim=1) + 4

for _ in range(3000):
    real, made = points[torch.randint(1024, (64,))], generator(torch.randn(64, 4))
    loss = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(made.detach())).mean()
    fast.zero_grad()
    loss.backward()
    fast.step()
    score = discriminator(made)
    loss = F.softplus(-score).mean()
    slow.zero_grad()
    loss.backward()
    slow.step()
