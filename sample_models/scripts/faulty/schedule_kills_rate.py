"""A schedule for epochs that is stepped with every batch.

Faulty: the rate is a thousandth of what it was before the first epoch is over.
Expected: schedule-kills-rate (LOOP004) error
Cure: step the scheduler once an epoch: one level less of indentation
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
means = torch.randn(10, 32)
labels = torch.randint(10, (1024,))
inputs = means[labels] + torch.randn(1024, 32)
loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.1)
    arguments = parser.parse_args()
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments.lr)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    for _ in range(10):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            scheduler.step()


if __name__ == "__main__":
    main()
