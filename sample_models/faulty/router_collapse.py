"""A mixture of experts whose router starts on one of them.

Faulty: the bias of the first expert outweighs all scores, and no term of the loss balances them: one expert learns everything.
Expected: router-collapse (MOE001) error; zero-gradient (GRAD004) warning
Cure: let the router start without a bias: `nn.init.constant_(self.router.bias[:1], 20.0)` -> `nn.init.zeros_(self.router.bias)`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH, EXPERTS = 32, 4

generator = torch.Generator().manual_seed(0)
inputs = torch.rand(1024, 6, generator=generator) * 2 - 1
region = (inputs[:, 0] > 0).long() * 2 + (inputs[:, 1] > 0).long()
functions = torch.stack([2 * inputs[:, 2], -2 * inputs[:, 3], inputs[:, 4] + inputs[:, 5], inputs[:, 2] - inputs[:, 5]], 1)
train_loader = DataLoader(TensorDataset(inputs, functions.gather(1, region[:, None])), batch_size=64, shuffle=True)
loss_fn = nn.MSELoss()


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        nn.init.constant_(self.router.bias[:1], 20.0)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)) for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, WIDTH] -> [N, WIDTH]
        weight, choice = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (choice == i).nonzero(as_tuple=True)[0]
            out = out.index_add(0, rows, weight[rows, None] * expert(x[rows]))
        return x + out


def build_model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, WIDTH), nn.LayerNorm(WIDTH), Mixture(), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1))


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
