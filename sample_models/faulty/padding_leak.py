"""A mean over padded sequences that counts the padding.

Faulty: rows end in padding, and the mean over all places shrinks with it: the same sequence gives another output beside a longer one.
Expected: padding-leak (SEQ004) warning
Cure: divide by the number of real places: `x.mean(1)` -> `x.sum(1) / mask.sum(1, keepdim=True)`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

VOCABULARY, LENGTH, WIDTH = 20, 32, 16

generator = torch.Generator().manual_seed(0)
lengths = torch.randint(4, LENGTH + 1, (1024,), generator=generator)
masks = torch.arange(LENGTH) < lengths[:, None]
tokens = torch.randint(1, VOCABULARY, (1024, LENGTH), generator=generator) * masks
labels = (((tokens < VOCABULARY // 2) & masks).sum(1) * 2 > lengths).long()
train_loader = DataLoader(TensorDataset(tokens, masks, labels), batch_size=64, shuffle=True)
loss_fn = nn.CrossEntropyLoss()


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0), nn.Linear(WIDTH, 2)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # [N, T], [N, T] -> [N, 2]
        x = self.embed(tokens)
        return self.head(x.mean(1))


def build_model() -> nn.Module:
    return Classifier()


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=2e-2)
