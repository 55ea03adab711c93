"""The healthy twin of faulty/attention_collapse.py: query and key weights of the usual size."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

CLASSES, TOKENS, WIDTH = 4, 48, 32

generator = torch.Generator().manual_seed(0)
means = torch.randn(CLASSES, WIDTH, generator=generator)
labels = torch.randint(CLASSES, (1024,), generator=generator)
noise = torch.randn(1024, TOKENS, WIDTH, generator=generator)
train_loader = DataLoader(TensorDataset(noise + 0.3 * means[labels][:, None], labels), batch_size=64, shuffle=True)


class Attention(nn.Module):
    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        nn.init.xavier_normal_(self.qkv.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, T, D] -> [N, T, D]
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, T, D] -> [N, CLASSES]
        return self.head(self.attention(x)[:, 0])


def build_model() -> nn.Module:
    return Classifier()


loss_fn = nn.CrossEntropyLoss()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-3)
