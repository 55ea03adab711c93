"""Faults of the training recipe in other spellings than the sample models': epsilon, decay, penalties, dropout, validation.

And recipes that look alike and work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from tests.test_programs import CLASSES, FEATURES, Net, Program, Tensor, classes, program, scan, sgd


class Dropped(Net):
    """Dropout by a function call after both hidden layers."""

    def __init__(self, rate: float, apply: Callable[..., Tensor] = F.dropout) -> None:
        super().__init__()
        self.rate, self.apply_dropout = rate, apply

    def forward(self, x: Tensor) -> Tensor:
        x = self.apply_dropout(F.relu(self.a(x)), self.rate, self.training)
        return self.c(self.apply_dropout(F.relu(self.b(x)), self.rate, self.training))


class ByHand(nn.Module):
    def __init__(self, keep: float) -> None:
        super().__init__()
        self.p = 1 - keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full_like(x, 1 - self.p)) / (1 - self.p)


def block(rate: float) -> nn.Module:
    """A transformer over the features, four to a token."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=rate, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Unflatten(1, (8, 4)), nn.Linear(4, 32), encoder, nn.Flatten(), nn.Linear(256, CLASSES))


def mlp(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 64), nn.ReLU(), *extra, nn.Linear(64, CLASSES))


def with_penalty(of: Callable[[nn.Module], Tensor]) -> Program:
    model = Net()
    return program(model, loss=lambda output, target: F.cross_entropy(output, target) + of(model))


def elastic(model: nn.Module) -> Tensor:
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    return torch.stack([w.abs().sum() + w.pow(2).sum() for w in weights]).sum()


def squared_norm(model: nn.Module) -> Tensor:
    return 2.0 * torch.cat([p.flatten() for p in model.parameters()]).norm() ** 2


def adam(**more: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.Adam(parameters, **{"lr": 1e-3} | more)


FAULTY: dict[str, tuple[str, str, Callable[[], Program]]] = {
    "epsilon of one": ("OPT003", "warning", lambda: program(Net(), optimizer=adam(eps=1.0))),
    "epsilon of RMSprop": ("OPT003", "warning", lambda: program(Net(), optimizer=lambda p: torch.optim.RMSprop(p, 1e-3, eps=1.0))),
    "decay beyond stability": ("REG001", "error", lambda: program(Net(), optimizer=sgd(0.1, weight_decay=30.0))),
    "decay of AdamW": ("REG001", "error", lambda: program(Net(), optimizer=lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=200.0))),
    "decay inside Adam": ("REG001", "error", lambda: program(Net(), optimizer=adam(weight_decay=1.0))),
    "elastic net by hand": ("REG001", "error", lambda: with_penalty(elastic)),
    "squared norm by hand": ("REG001", "error", lambda: with_penalty(squared_norm)),
    "dropout by a function": ("REG003", "error", lambda: program(Dropped(0.97))),
    "dropout by hand": ("REG003", "error", lambda: program(nn.Sequential(mlp(ByHand(0.01))))),
    "everything dropped": ("REG003", "error", lambda: program(mlp(nn.Dropout(1.0)))),
    "dropout on the input": ("REG003", "error", lambda: program(nn.Sequential(nn.Dropout(0.99), mlp()))),
    "dropout inside a transformer": ("REG003", "warning", lambda: program(block(0.99))),
}

HEALTHY: dict[str, Callable[[], Program]] = {
    "small epsilon": lambda: program(Net(), optimizer=adam(eps=1e-12)),
    "epsilon of a thousandth": lambda: program(Net(), optimizer=adam(lr=3e-3, eps=1e-3)),
    "AMSGrad with decay": lambda: program(Net(), optimizer=adam(weight_decay=1e-4, amsgrad=True)),
    "usual decay of SGD": lambda: program(Net(), optimizer=sgd(0.1, momentum=0.9, weight_decay=5e-4)),
    "strong decay of AdamW": lambda: program(Net(), optimizer=lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0.3)),
    "weak penalty": lambda: with_penalty(lambda model: 1e-4 * elastic(model)),
    "penalty on the output": lambda: program(Net(), loss=lambda o, t: F.cross_entropy(o, t) + 1e-3 * o.square().mean()),
    "dropout of a half": lambda: program(Dropped(0.5), optimizer=adam(lr=3e-3)),
    "alpha dropout": lambda: program(Dropped(0.1, F.alpha_dropout)),
    "transformer with dropout": lambda: program(block(0.1)),
    "smoothed labels": lambda: program(Dropped(0.1), loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_recipe_gets_its_code(name):
    torch.manual_seed(0)
    code, severity, make = FAULTY[name]
    report = scan(make())
    assert (code, severity) in {(f.code, f.severity) for f in report.findings}
    assert not [s for s in report.rules if s.status == "crashed"]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_recipe_gets_neither_error_nor_warning(name):
    torch.manual_seed(0)
    report = scan(HEALTHY[name]())
    assert [(f.code, f.message) for f in report.findings if f.severity != "info"] == []


def noisy(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches whose labels say little about the inputs."""
    g = torch.Generator().manual_seed(seed)
    batches = [(x, y) for x, y in classes()]
    return [(x + 3 * torch.randn(x.shape, generator=g), y) for x, y in batches[:count]]


@pytest.mark.parametrize(("count", "severity"), [(1, "warning"), (0, None)])
def test_overfitting_needs_a_gap(count, severity):
    torch.manual_seed(0)
    model = Net()
    train = noisy(1, 1) if count else classes()
    held_out = noisy(8, 2) if count else classes()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    report = gradcheck.scan(model, train, loss=nn.CrossEntropyLoss(), optimizer=optimizer, val_data=held_out)
    assert {f.code: f.severity for f in report.findings}.get("REG004") == severity
