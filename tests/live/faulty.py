"""Trainings that fail, each for one reason, with the code that is to say so."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from tests.live.loops import Watch, batches


def _train(
    watch: Watch, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 120, clears: bool = True, spoils: int = -1
) -> None:
    with watch(model, optimizer):
        for i, (x, y) in enumerate(batches(steps)):
            if clears:
                optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if i == spoils:
                loss = loss + (loss - 100).sqrt()
            loss.backward()
            optimizer.step()


def _deep(depth: int, width: int = 32, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(20, width), activation()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 5))


def diverging(watch: Watch) -> None:
    torch.manual_seed(0)
    model = _deep(2)
    _train(watch, model, torch.optim.Adam(model.parameters(), lr=3.0))


def dead(watch: Watch) -> None:
    torch.manual_seed(0)
    model = _deep(1)
    nn.init.constant_(model[2].bias, -50.0)
    _train(watch, model, torch.optim.SGD(model.parameters(), lr=0.01))


def vanishing(watch: Watch) -> None:
    torch.manual_seed(0)
    model = _deep(14, activation=nn.Sigmoid)
    _train(watch, model, torch.optim.SGD(model.parameters(), lr=0.01))


def exploding(watch: Watch) -> None:
    torch.manual_seed(0)
    model = _deep(12)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.8)
    _train(watch, model, torch.optim.SGD(model.parameters(), lr=1e-3))


def uncleared(watch: Watch) -> None:
    torch.manual_seed(0)
    model = _deep(1)
    _train(watch, model, torch.optim.SGD(model.parameters(), lr=0.05), clears=False)


def non_finite(watch: Watch) -> None:
    torch.manual_seed(0)
    model = _deep(1)
    _train(watch, model, torch.optim.SGD(model.parameters(), lr=0.05), spoils=27)


def left_out(watch: Watch) -> None:
    torch.manual_seed(0)
    model = _deep(1)
    _train(watch, model, torch.optim.SGD([*model[0].parameters(), *model[4].parameters()], lr=0.05))


def doubled(watch: Watch) -> None:
    """Softmax twice: the loss gets probabilities."""
    torch.manual_seed(0)
    model = nn.Sequential(_deep(1), nn.Softmax(1))
    _train(watch, model, torch.optim.SGD(model.parameters(), lr=0.05))


KINDS: dict[str, tuple[Callable[[Watch], None], str]] = {
    "diverging": (diverging, "OPT001"),
    "dead": (dead, "ACT002"),
    "vanishing": (vanishing, "GRAD001"),
    "exploding": (exploding, "GRAD002"),
    "uncleared": (uncleared, "GRAPH006"),
    "non-finite": (non_finite, "NUM001"),
    "left out": (left_out, "GRAPH003"),
    "softmax twice": (doubled, "LOSS001"),
}
