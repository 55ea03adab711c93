"""A language model of two LSTM layers on sequences from a random Markov chain."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, LENGTH, BATCH = 64, 24, 32

generator = torch.Generator().manual_seed(0)
# Each token has a few likely successors: the best loss is 1.6, guessing costs log(64) = 4.2.
successors = F.softmax(3 * torch.randn(VOCABULARY, VOCABULARY, generator=generator), dim=-1)


def get_batch(size: int = BATCH) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [N, T] and, for each, the id that follows [N, T]."""
    tokens = [torch.randint(VOCABULARY, (size,))]
    for _ in range(LENGTH):
        tokens.append(torch.multinomial(successors[tokens[-1]], 1).squeeze(1))
    sequence = torch.stack(tokens, dim=1)
    return sequence[:, :-1], sequence[:, 1:]


class LanguageModel(nn.Module):
    def __init__(self, width: int = 96, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=0.1)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:  # [N, T] -> [N, T, VOCABULARY]
        states, _ = self.lstm(self.dropout(self.embedding(tokens)))
        return self.head(self.dropout(states))


def build_model() -> nn.Module:
    return LanguageModel()


def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=3e-3)
