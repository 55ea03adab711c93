"""What a member of the zoo is, and the data that it is shown.

The data are learnable: classes differ in a pattern, tokens follow each other in a pattern. `signal` says how clearly;
at 0 labels and tokens are random, which a healthy model must survive as well (it can only learn them by heart).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

BATCHES = 4  # distinct batches of a case

signal: float = 1.0  # set by `zoo.py --signal`


@dataclass
class Case:
    """A healthy workload: the arguments of `gradcheck.scan`."""

    model: nn.Module
    batches: list[Any]
    loss: Callable[[Any, Any], torch.Tensor] | None = None  # None: the output has `.loss`
    optimizer: torch.optim.Optimizer | None = None
    training_step: Callable[[nn.Module, Any], torch.Tensor] | None = None

    def step(self, batch: Any) -> torch.Tensor:
        """The loss of one batch, as a plain training loop would compute it."""
        if self.training_step is not None:
            return self.training_step(self.model, batch)
        if self.loss is None:
            return self.model(**batch).loss
        inputs, target = batch
        return self.loss(self.model(inputs), target)


Builder = Callable[[], Case]


def adamw(model: nn.Module, lr: float = 5e-4, weight_decay: float = 0.01) -> torch.optim.Optimizer:
    return torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=lr, weight_decay=weight_decay)


def sgd(model: nn.Module, lr: float = 0.05, weight_decay: float = 1e-4) -> torch.optim.Optimizer:
    return torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=lr, momentum=0.9, weight_decay=weight_decay)


def labels(samples: int, classes: int) -> torch.Tensor:
    """[samples] class labels, as balanced as they can be, shuffled."""
    return (torch.arange(samples) % classes)[torch.randperm(samples)]


def patterned(target: torch.Tensor, shape: tuple[int, ...], classes: int) -> torch.Tensor:
    """[N, *shape] standard normal noise plus, of the same size, a smooth pattern for each class."""
    coarse = [max(1, -(-size // 8)) for size in shape[1:]]
    pattern = torch.randn(classes, shape[0], *coarse)
    for axis, size in enumerate(shape[1:], start=2):
        index = torch.arange(size) * pattern.shape[axis] // size
        pattern = pattern.index_select(axis, index)
    return (torch.randn(len(target), *shape) + signal * pattern[target]) / (1 + signal**2) ** 0.5


def images(samples: int = 16, size: int = 32, channels: int = 3, classes: int = 10) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of images [N, channels, size, size] and labels [N]."""
    return vectors(samples, (channels, size, size), classes)


def vectors(samples: int = 32, shape: tuple[int, ...] = (32,), classes: int = 10) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of inputs [N, *shape] and labels [N]."""
    target = labels(samples * BATCHES, classes)
    return list(zip(patterned(target, shape, classes).split(samples), target.split(samples), strict=True))


def sequences(samples: int, length: int, vocabulary: int, first: int = 5) -> torch.Tensor:
    """[samples, length] token ids from `first` up: with the signal's probability the next one follows from the last."""
    follows = torch.randperm(vocabulary - first) + first
    tokens = torch.randint(first, vocabulary, (samples, length))
    for position in range(1, length):
        known = torch.rand(samples) < 0.8 * min(signal, 1.0)
        tokens[:, position] = torch.where(known, follows[tokens[:, position - 1] - first], tokens[:, position])
    return tokens


def documents(samples: int, length: int, vocabulary: int, classes: int, first: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [samples, length] and labels [samples]: half of the tokens are from the class's own part of the vocabulary."""
    target = labels(samples, classes)
    tokens = torch.randint(first, vocabulary, (samples, length))
    part = (vocabulary - first) // classes
    own = first + target[:, None] * part + torch.randint(0, part, (samples, length))
    return torch.where(torch.rand(samples, length) < 0.5 * signal, own, tokens), target


def in_batches(samples: int = 8, **tensors: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Splits named tensors along their first axis into batches, as dicts."""
    pieces: Iterable[tuple[torch.Tensor, ...]] = zip(*(tensor.split(samples) for tensor in tensors.values()), strict=True)
    return [dict(zip(tensors, piece, strict=True)) for piece in pieces]


cross_entropy = F.cross_entropy
