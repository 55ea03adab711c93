"""A plain recurrent net with weights that are too large, over forty steps: its gradient explodes.

Expected: orthogonal-recurrent, clip-gradient-norm, adaptive-gradient-clipping, clip-gradient-value, replace-activation or
lower-learning-rate helps most
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STEPS, WIDTH = 40, 48

generator = torch.Generator().manual_seed(0)


def drawn(count: int) -> TensorDataset:
    x = torch.randn(count, STEPS, 2, generator=generator)
    return TensorDataset(x, x[:, -10:, 0].mean(dim=1, keepdim=True) + x[:, -5:, 1].mean(dim=1, keepdim=True))


train_loader = DataLoader(drawn(1024), batch_size=32, shuffle=True)
val_loader = DataLoader(drawn(512), batch_size=256)
loss_fn = nn.MSELoss()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.RNN(2, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, 1)
        nn.init.normal_(self.recurrent.weight_hh_l0, std=2.0 / WIDTH**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.recurrent(x)  # [N, steps, width]
        return self.head(states[:, -1])


def build_model() -> nn.Module:
    return Recurrent()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05)
