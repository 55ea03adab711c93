"""Modules of many kinds, on which recorders are tried."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Chain(nn.Module):
    """Convolution, normalization, in-place ReLU, a view, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.head = nn.Linear(6 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).view(len(x), -1))


class Split(nn.Module):
    """Views that are changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.linear(x))
        y *= 2
        y[:, :4].add_(1)
        a, b = y.chunk(2, dim=1)
        return a * b


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.linear.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(torch.tanh(self.linear(F.relu(self.linear(x)))))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 5, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        return self.lstm(x.unsqueeze(1))


@dataclass
class Output:
    logits: torch.Tensor
    nothing: None = None


class Pair(NamedTuple):
    mask: torch.Tensor
    logits: torch.Tensor


class Structured(nn.Module):
    """Returns what `wrap` makes of its result."""

    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner = _Wrapped(wrap)

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(x)


class _Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.wrap = nn.Linear(8, 3), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.linear(x) * 2)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh())
        self.first, self.reentrant = nn.Linear(8, 8), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)


class Autocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.body(x)


class Penalized(nn.Module):
    """A double backward in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.requires_grad_()
        y = self.body(x)
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        return y + slope.square().sum()


class Transformed(nn.Module):
    """Runs its layer inside torch.func.vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.func.vmap(lambda row: F.relu(self.linear(row)))(x)


class Unregistered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(8, 8), nn.Linear(8, 3)]
        self.first = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return x


def lazy() -> nn.Module:
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(3))
    with torch.no_grad():
        model(torch.ones(2, 8))
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "in-place and view": Chain,
    "views in place": Split,
    "reused and tied": Twice,
    "recurrent": Recurrent,
    "tuple": lambda: Structured(lambda y: (y, None)),
    "dict": lambda: Structured(lambda y: {"logits": y, "steps": 3}),
    "dataclass": lambda: Structured(Output),
    "named tuple": lambda: Structured(lambda y: Pair(y > 0, y)),
    "nested": lambda: Structured(lambda y: [({"y": y},)]),
    "checkpointed": lambda: Checkpointed(False),
    "checkpointed, reentrant": lambda: Checkpointed(True),
    "autocast": Autocast,
    "double backward": Penalized,
    "vmap": Transformed,
    "unregistered": Unregistered,
    "lazy": lazy,
    "attention": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "frozen": lambda: nn.Sequential(nn.Linear(8, 8).requires_grad_(False), nn.ReLU(), nn.Linear(8, 3)),
}
