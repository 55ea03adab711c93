"""Low-rank adapters whose scale is alpha over a high rank.

Faulty: with alpha / rank, 16 / 64, the adapters learn no more than ones of rank 16.
Expected: adapter-scale (TUNE002) info
Cure: divide by the root of the rank: `16 / RANK` -> `16 / RANK**0.5`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

WIDTH, RANK = 128, 64
SCALE = 16 / RANK

generator = torch.Generator().manual_seed(0)
centres = torch.randn(10, 16, generator=generator)
labels = torch.randint(10, (1024,), generator=generator)
inputs = centres[labels] + torch.randn(1024, 16, generator=generator)
train_loader = DataLoader(TensorDataset(inputs, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, in_features] -> [N, out_features]
        return self.base(x) + SCALE * (x @ self.down.T @ self.up.T)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, WIDTH] -> [N, WIDTH]
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(16, WIDTH), nn.Linear(WIDTH, 10)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, 16] -> [N, 10]
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build_model() -> nn.Module:
    model = Net().requires_grad_(False)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name.startswith("blocks."):
            setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], LoRALinear(layer))
    model.head.requires_grad_(True)
    return model


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
