"""A transformer of eight blocks without residual connections.

Faulty: attention averages the tokens of a sequence; with no skip around it all tokens are the same vector after a few
    blocks.
Expected: collapsed-representation (ACT004) error
Cure: `return self.layer(self.norm(x))` -> `return x + self.layer(self.norm(x))`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

VOCABULARY, LENGTH, TAGS, WIDTH = 32, 8, 8, 64

generator = torch.Generator().manual_seed(0)
tag_of = torch.randint(TAGS, (VOCABULARY,), generator=generator)
tokens = torch.randint(VOCABULARY, (256, LENGTH), generator=generator)
train_loader = DataLoader(TensorDataset(tokens, tag_of[tokens]), batch_size=32, shuffle=True)


class Attention(nn.Module):
    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, T, D] -> [N, T, D]
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Branch(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.norm(x))


def feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))


class Tagger(nn.Module):
    def __init__(self, depth: int = 8) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*[nn.Sequential(Branch(Attention()), Branch(feed_forward())) for _ in range(depth)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, TAGS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, T] -> [N, T, TAGS]
        x = self.tokens(x) + self.positions.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x)))


def build_model() -> nn.Module:
    return Tagger()


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
