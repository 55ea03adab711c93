"""Normalization, missing nonlinearities and residual growth, in the spellings that people use; and healthy programs that look alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from tests.test_programs import CLASSES, FEATURES, classes

Tensor = torch.Tensor
SELECTED = {"select": ["NORM", "ACT006", "INIT003"]}


class Written(nn.Module):
    """Two hidden layers, and a function of both that makes the features."""

    def __init__(self, features: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(FEATURES, 64), nn.Linear(64, 64), nn.Linear(64, CLASSES)
        self.bn = nn.BatchNorm1d(64)
        for name, part in parts.items():
            setattr(self, name, part)
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(self, x))


class HeldBack(nn.Module):
    """A net whose `train` keeps the batch normalizations out of training."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 64), nn.BatchNorm1d(64), nn.ReLU())
        self.head = nn.Linear(64, CLASSES)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.body[1].eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Products(nn.Module):
    """Matrices without a layer class."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(FEATURES, 64) / FEATURES**0.5)
        self.v, self.u = nn.Parameter(torch.randn(64, 64) / 8), nn.Parameter(torch.randn(64, CLASSES) / 8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.between(x @ self.w) @ self.v) @ self.u


class Residual(nn.Module):
    """He-initialised blocks on a bypass; `scale` of each branch."""

    def __init__(self, depth: int, scale: float) -> None:
        super().__init__()
        self.first, self.head, self.scale = nn.Linear(FEATURES, 64), nn.Linear(64, CLASSES), scale
        self.blocks = nn.ModuleList([nn.Linear(64, 64) for _ in range(depth)])
        for block in self.blocks:
            nn.init.kaiming_normal_(block.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = torch.add(x, F.relu(block(x)).mul(self.scale))
        return self.head(x)


def functional_norm(training: bool, momentum: float = 0.1) -> nn.Module:
    def features(net: Any, x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(net.b(F.relu(net.a(x))), net.mean, net.variance, training=training, momentum=momentum))

    net = Written(features)
    net.register_buffer("mean", torch.zeros(64))
    net.register_buffer("variance", torch.ones(64))
    return net


def slow_statistics() -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(n, 64), nn.BatchNorm1d(64, momentum=0.001), nn.ReLU()) for n in (FEATURES, 64)]
    return nn.Sequential(*blocks, nn.Linear(64, CLASSES))


def batches(size: int) -> list[tuple[Tensor, Tensor]]:
    return [(x[:size], y[:size]) for x, y in classes()]


def leftover() -> list[tuple[Tensor, Tensor]]:
    (x, y), *rest = classes()
    return [*rest, (x[:1], y[:1])]


Program = tuple[nn.Module, list[Any]]


def plain(net: Any, x: Tensor) -> Tensor:
    return F.relu(net.bn(net.b(F.relu(net.a(x)))))


FAULTY: dict[str, tuple[str, str, Callable[[], Program]]] = {
    "batches of one": ("NORM003", "error", lambda: (Written(plain), batches(1))),
    "one sample left over": ("NORM003", "error", lambda: (Written(plain), leftover())),
    "batches of three": ("NORM003", "warning", lambda: (Written(plain), batches(3))),
    "functional dropout, then batch norm": (
        "NORM004",
        "warning",
        lambda: (Written(lambda n, x: n.b(n.bn(F.dropout(F.relu(n.a(x)), 0.5, n.training)))), classes()),
    ),
    "train() that keeps batch norm in eval": ("NORM005", "warning", lambda: (HeldBack(), classes())),
    "eval() in forward": ("NORM005", "warning", lambda: (Written(lambda n, x: F.relu(n.bn.eval()(n.a(x)))), classes())),
    "F.batch_norm without training": ("NORM005", "warning", lambda: (functional_norm(False), classes())),
    "F.batch_norm with momentum 0": ("NORM006", "warning", lambda: (functional_norm(True, 0.0), classes())),
    "momentum 0.001": ("NORM006", "warning", lambda: (slow_statistics(), classes())),
    "no activation": ("ACT006", "warning", lambda: (Written(lambda n, x: F.relu(n.b(n.a(x)))), classes())),
    "no activation at all": ("ACT006", "warning", lambda: (Written(lambda n, x: n.b(n.a(x))), classes())),
    "only dropout and scaling between": (
        "ACT006",
        "warning",
        lambda: (Written(lambda n, x: F.relu(n.b(F.dropout(n.a(x), 0.1) * 2 + 1))), classes()),
    ),
    "matrix products": ("ACT006", "warning", lambda: (Products(lambda x: x + 1), classes())),
    "loud branches": ("INIT003", "warning", lambda: (Residual(12, 1.0), classes())),
}
HEALTHY: dict[str, Callable[[], Program]] = {
    "batch norm": lambda: (Written(plain), classes()),
    "batch norm by function": lambda: (functional_norm(True), classes()),
    "little dropout before batch norm": lambda: (
        Written(lambda n, x: F.relu(n.b(n.bn(F.dropout(F.relu(n.a(x)), 0.05, n.training))))),
        classes(),
    ),
    "dropout behind a linear layer": lambda: (
        Written(lambda n, x: F.relu(n.bn(n.b(F.dropout(F.relu(n.a(x)), 0.3, n.training))))),
        classes(),
    ),
    "some dropout between a linear layer and its batch norm": lambda: (
        Written(lambda n, x: F.relu(n.bn(F.dropout(n.b(F.relu(n.a(x))), 0.3, n.training)))),
        classes(),
    ),
    "relu by hand": lambda: (Written(lambda n, x: F.relu(n.b((h := n.a(x)) * (h > 0)))), classes()),
    "a bottleneck": lambda: (Written(lambda n, x: F.relu(n.up(n.a(x))), a=nn.Linear(FEATURES, 8), up=nn.Linear(8, 64)), classes()),
    "a bypass": lambda: (Written(lambda n, x: (h := n.a(x)) + F.relu(n.b(h))), classes()),
    "logistic regression": lambda: (nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, CLASSES)), classes()),
    "tanh between products": lambda: (Products(torch.tanh), classes()),
    "quiet branches": lambda: (Residual(12, 12**-0.5), classes()),
}


def scan(made: Program) -> gradcheck.Report:
    model, data = made
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    return gradcheck.scan(model, data, loss=F.cross_entropy, optimizer=optimizer, config=SELECTED)


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_program_gets_its_code(name):
    torch.manual_seed(0)
    code, severity, make = FAULTY[name]
    report = scan(make())
    assert (code, severity) in {(f.code, f.severity) for f in report.findings}
    assert not [s for s in report.rules if s.status == "crashed"]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_program_gets_neither_error_nor_warning(name):
    torch.manual_seed(0)
    report = scan(HEALTHY[name]())
    assert [(f.code, f.message) for f in report.findings if f.severity != "info"] == []


def test_a_trained_model_may_freeze_its_statistics():
    model = HeldBack()
    model.body[1].running_mean.add_(0.1)
    assert [f for f in scan((model, classes())).findings if f.severity != "info"] == []
