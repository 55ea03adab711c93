"""Small programs with one fault each, written as people write them, and healthy ones that look alike.

`sample_models/` shows each illness once; these are the other spellings: functional calls, closures, hand-written losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck

Tensor = torch.Tensor
CLASSES, FEATURES = 10, 32


def same(x: Tensor) -> Tensor:
    return x


class Net(nn.Module):
    """Three linear layers; `middle` and `last` are where the faults go."""

    def __init__(self, outputs: int = CLASSES, middle: Callable[[Tensor], Tensor] = same, last: Callable[[Tensor], Tensor] = same) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(FEATURES, 64), nn.Linear(64, 64), nn.Linear(64, outputs)
        self.middle, self.last = middle, last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.c(F.relu(self.b(self.middle(F.relu(self.a(x)))))))


class Deep(nn.Module):
    """One function applied at one line after every layer of a plain stack."""

    def __init__(self, depth: int, act: Callable[[Tensor], Tensor], init: Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(FEATURES, 64), *(nn.Linear(64, 64) for _ in range(depth - 1))])
        self.head, self.act = nn.Linear(64, CLASSES), act
        for layer in self.layers if init is not None else ():
            init(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.act(layer(x))
        return self.head(x)


class WithoutGrad(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = F.relu(self.b(F.relu(self.a(x))))
        return self.c(x)


class HiddenInDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = {"a": nn.Linear(FEATURES, 64)}, nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.layers["a"](x)))


class HiddenInClosure(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(FEATURES, 64)
        self.function, self.head = lambda x: F.relu(layer(x)), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(x))


def classes() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, FEATURES, generator=g)
    labels = [torch.randint(CLASSES, (64,), generator=g) for _ in range(8)]
    return [(means[y] + torch.randn(64, FEATURES, generator=g), y) for y in labels]


def values() -> list[tuple[Tensor, Tensor]]:
    """Targets [64, 1] around 0 with standard deviation 1."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(FEATURES, 1, generator=g) / FEATURES**0.5
    inputs = [torch.randn(64, FEATURES, generator=g) for _ in range(8)]
    return [(x, x @ weight) for x in inputs]


def flat() -> list[tuple[Tensor, Tensor]]:
    return [(x, y[:, 0]) for x, y in values()]


def yes_no() -> list[tuple[Tensor, Tensor]]:
    return [(x, (y > 0).float()) for x, y in values()]


def one_hot() -> list[tuple[Tensor, Tensor]]:
    return [(x, F.one_hot(y, CLASSES).float()) for x, y in classes()]


Program = tuple[nn.Module, list[Any], Callable[..., Tensor], torch.optim.Optimizer]


def program(
    model: nn.Module, data: Callable[[], list[Any]] = classes, loss: Callable[..., Tensor] = F.cross_entropy, optimizer: Any = None
) -> Program:
    make = optimizer or (lambda parameters: torch.optim.Adam(parameters, 1e-3))
    return model, data(), loss, make(model.parameters())


def sgd(lr: float, **more: Any) -> Callable[..., torch.optim.Optimizer]:
    return lambda parameters: torch.optim.SGD(parameters, lr, **more)


def scaled(layer: str, factor: float, **more: Any) -> nn.Module:
    model = Net(**more)
    getattr(model, layer).weight.data.mul_(factor)
    return model


def stale() -> Program:
    found = program(Net())
    found[0].c = nn.Linear(64, CLASSES)  # after the optimizer was made
    return found


def log_likelihood(output: Tensor, target: Tensor) -> Tensor:
    """Its sign is forgotten."""
    return F.log_softmax(output, 1)[torch.arange(len(target)), target].mean()


def regression(last: Callable[[Tensor], Tensor] = same, loss: Callable[..., Tensor] = F.mse_loss, **more: Any) -> Program:
    return program(Net(1, last=last), more.pop("data", values), loss, **more)


FAULTY: dict[str, tuple[str, Callable[[], Program]]] = {
    "softmax before cross entropy": ("LOSS001", lambda: program(Net(last=lambda x: F.softmax(x, -1)))),
    "logits into nll_loss": ("LOSS001", lambda: program(Net(), loss=F.nll_loss)),
    "probabilities into nll_loss": ("LOSS001", lambda: program(Net(last=lambda x: x.softmax(1)), loss=F.nll_loss)),
    "probabilities into kl_div": (
        "LOSS001",
        lambda: program(Net(last=lambda x: x.softmax(1)), one_hot, lambda o, t: F.kl_div(o, t + 1e-6)),
    ),
    "relu before cross entropy": ("LOSS001", lambda: program(Net(last=F.relu))),
    "sigmoid before bce with logits": ("LOSS001", lambda: regression(torch.sigmoid, F.binary_cross_entropy_with_logits, data=yes_no)),
    "logits into bce": ("LOSS001", lambda: regression(same, nn.BCELoss(), data=yes_no)),
    "softmax over one unit": ("LOSS001", lambda: regression(lambda x: F.softmax(x, 1), nn.BCELoss(), data=yes_no)),
    "relu on a regression": ("LOSS001", lambda: regression(F.relu)),
    "sigmoid on a regression": ("LOSS001", lambda: regression(torch.sigmoid)),
    "targets without their last axis": ("LOSS002", lambda: regression(data=flat)),
    "the same by hand": ("LOSS002", lambda: regression(loss=lambda o, t: ((o - t) ** 2).mean(), data=flat)),
    "one class too few": ("LOSS002", lambda: program(Net(CLASSES - 1))),
    "log_softmax over the batch": ("LOSS004", lambda: program(Net(last=lambda x: F.log_softmax(x, 0)), loss=F.nll_loss)),
    "no_grad": ("GRAPH001", lambda: program(WithoutGrad())),
    "detach": ("GRAPH001", lambda: program(Net(middle=lambda x: x.detach()))),
    "data": ("GRAPH001", lambda: program(Net(middle=lambda x: x.data))),
    "numpy": ("GRAPH001", lambda: program(Net(middle=lambda x: torch.from_numpy(x.detach().numpy())))),
    "tolist": ("GRAPH001", lambda: program(Net(middle=lambda x: torch.tensor(x.tolist())))),
    "argmax": ("GRAPH001", lambda: program(Net(middle=lambda x: F.one_hot(x.argmax(1), 64).float()))),
    "comparison": ("GRAPH001", lambda: program(Net(middle=lambda x: (x > 0).float()))),
    "hidden in a dict": ("GRAPH002", lambda: program(HiddenInDict())),
    "hidden in a closure": ("GRAPH002", lambda: program(HiddenInClosure())),
    "optimizer over one layer": ("GRAPH003", lambda: program(m := Net(), optimizer=lambda _: torch.optim.Adam(m.a.parameters()))),
    "layer replaced after the optimizer was made": ("GRAPH003", stale),
    "maximize": ("GRAPH004", lambda: program(Net(), optimizer=sgd(0.1, maximize=True))),
    "negative loss": ("GRAPH004", lambda: program(Net(), loss=lambda o, t: -F.cross_entropy(o, t))),
    "log likelihood without its sign": ("GRAPH004", lambda: program(Net(), loss=log_likelihood)),
    "negative squared error": ("GRAPH004", lambda: regression(loss=lambda o, t: -((o - t) ** 2).mean(), optimizer=sgd(0.05))),
    "sign": ("GRAD004", lambda: program(Net(middle=lambda x: torch.sign(x - 0.1)))),
    "round": ("GRAD004", lambda: program(Net(middle=torch.round))),
    "small weights in a deep net": ("GRAD001", lambda: program(Deep(16, F.relu, lambda w: nn.init.normal_(w, 0, 0.02)))),
    "default weights in a deep tanh net": ("GRAD001", lambda: program(Deep(20, torch.tanh), optimizer=sgd(0.01))),
    "unit weights in a deep net": ("GRAD002", lambda: program(Deep(16, F.relu, lambda w: nn.init.normal_(w, 0, 1)))),
    "one sigmoid applied eight times": ("ACT003", lambda: program(Deep(8, torch.sigmoid))),
    "saturated tanh": ("ACT001", lambda: program(Deep(3, torch.tanh, lambda w: nn.init.normal_(w, 0, 4)), optimizer=sgd(0.01))),
    "loud layer": ("INIT002", lambda: program(scaled("b", 100))),
    "quiet layer": ("INIT002", lambda: program(scaled("b", 1e-3), optimizer=sgd(0.01))),
    "log of what may be zero": ("NUM001", lambda: program(Net(middle=torch.log))),
    "division by zero": ("NUM001", lambda: program(Net(middle=lambda x: x / (x - x).sum(0)))),
    "exp overflows": ("NUM001", lambda: program(Net(middle=lambda x: torch.exp(x * 1000)))),
    "root of a zero distance": ("NUM002", lambda: program(Net(middle=lambda x: x + ((x - x.detach()) ** 2).sum(1, keepdim=True).sqrt()))),
    "power of zero": ("NUM002", lambda: program(Net(middle=lambda x: x + (x * 0).pow(0.5)))),
    "rate of 100": ("OPT001", lambda: program(Net(), optimizer=sgd(100.0))),
    "rate of a millionth": ("OPT002", lambda: program(Net(), optimizer=sgd(1e-6))),
    "one feature in other units": (
        "DATA001",
        lambda: program(Net(), lambda: [(x * torch.logspace(-3, 4, FEATURES), y) for x, y in classes()]),
    ),
    "one class": ("DATA004", lambda: program(Net(), lambda: [(x, y * 0) for x, y in classes()])),
}

HEALTHY: dict[str, Callable[[], Program]] = {
    "classifier": lambda: program(Net()),
    "momentum": lambda: program(Net(), optimizer=sgd(0.02, momentum=0.9)),
    "log_softmax and nll_loss": lambda: program(Net(last=lambda x: F.log_softmax(x, 1)), loss=F.nll_loss),
    "label smoothing": lambda: program(Net(), loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
    "soft labels": lambda: program(Net(), one_hot),
    "regression": lambda: regression(),
    "squared error by hand": lambda: regression(loss=lambda o, t: ((o - t) ** 2).mean()),
    "positive outputs for positive targets": lambda: regression(F.softplus, data=lambda: [(x, y.exp()) for x, y in values()]),
    "bce with logits": lambda: regression(loss=F.binary_cross_entropy_with_logits, data=yes_no),
    "sigmoid and bce": lambda: regression(torch.sigmoid, F.binary_cross_entropy, data=yes_no),
    "ranking by pairs": lambda: regression(
        loss=lambda o, t: F.softplus(-(o[:, 0, None] - o[:, 0]) * (t[:, None] - t).sign()).mean(), data=flat
    ),
    "straight-through rounding": lambda: program(Net(middle=lambda x: x + (x.round() - x).detach())),
    "root of what may be zero": lambda: program(Net(middle=torch.sqrt)),
    "xavier tanh": lambda: program(Deep(10, torch.tanh, nn.init.xavier_normal_)),
    "he relu": lambda: program(Deep(8, F.relu, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"))),
    "two sigmoid layers": lambda: program(Deep(2, torch.sigmoid), optimizer=lambda p: torch.optim.Adam(p, 5e-3)),
}


def scan(made: Program) -> gradcheck.Report:
    model, batches, loss, optimizer = made
    return gradcheck.scan(model, batches, loss=loss, optimizer=optimizer)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own words about the faults
@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_program_gets_its_code(name):
    torch.manual_seed(0)
    code, make = FAULTY[name]
    report = scan(make())
    assert code in {f.code for f in report.findings}
    assert not [s for s in report.rules if s.status == "crashed"]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_program_gets_neither_error_nor_warning(name):
    torch.manual_seed(0)
    report = scan(HEALTHY[name]())
    assert [(f.code, f.message) for f in report.findings if f.severity != "info"] == []
