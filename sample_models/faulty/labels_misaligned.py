"""A language model whose labels are not shifted.

Faulty: the target of each place is the token that the model is given there: it learns to copy, and the loss says that it does so well.
Expected: labels-misaligned (SEQ002) error
Cure: compare `logits[:, :-1]` with `target[:, 1:]`
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

VOCABULARY, LENGTH, WIDTH = 16, 16, 32

generator = torch.Generator().manual_seed(0)
text = torch.randint(VOCABULARY, (1024, LENGTH), generator=generator)
for t in range(2, LENGTH):
    text[:, t] = (text[:, t - 1] + text[:, t - 2]) % VOCABULARY
train_loader = DataLoader(TensorDataset(text, text), batch_size=64, shuffle=True)


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gru, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.GRU(WIDTH, 64, batch_first=True), nn.Linear(64, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # [N, T] -> [N, T, VOCABULARY]
        return self.head(self.gru(self.embed(tokens))[0])


def build_model() -> nn.Module:
    return LanguageModel()


def loss_fn(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), target.flatten())


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=2e-2)
