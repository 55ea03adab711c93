"""A generator that no longer learns: its images are detached for both losses.

Faulty: the gradient of the generator's loss ends at `detach()`.
Expected: disconnected-parameters (GRAPH001) error
Cure: detach for the discriminator only
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
means = torch.randn(10, 32)
labels = torch.randint(10, (1024,))
inputs = means[labels] + torch.randn(1024, 32)
loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)

generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32))
discriminator = nn.Sequential(nn.Linear(32, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
generator_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
loss = nn.BCEWithLogitsLoss()
for _ in range(10):
    for real, _labels in loader:
        fake = generator(torch.randn(len(real), 8)).detach()
        ones, zeros = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        discriminator_optimizer.zero_grad()
        (loss(discriminator(real), ones) + loss(discriminator(fake.detach()), zeros)).backward()
        discriminator_optimizer.step()
        generator_optimizer.zero_grad()
        loss(discriminator(fake), ones).backward()
        generator_optimizer.step()
