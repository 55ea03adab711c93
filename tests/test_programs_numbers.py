"""Programs in the spellings that people use: attention, losses by hand, half precision, targets. Each is scanned as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradcheck

FEATURES, CLASSES, TOKENS = 16, 4, 12

Program = tuple[nn.Module, list[Any], Callable[[nn.Module, Any], Tensor], torch.optim.Optimizer]


def same(x: Tensor) -> Tensor:
    return x


class Net(nn.Module):
    def __init__(self, outputs: int = CLASSES, last: Callable[[Tensor], Tensor] = same) -> None:
        super().__init__()
        self.a, self.b, self.last = nn.Linear(FEATURES, 32), nn.Linear(32, outputs), last

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.b(F.relu(self.a(x))))


class Attending(nn.Module):
    """x [N, T, FEATURES] -> logits; `weights(q, k)` gives the attention weights [N, T, T] of a single wide head."""

    def __init__(self, weights: Callable[[Tensor, Tensor], Tensor], width: int = 64, std: float | None = None) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(FEATURES, width) for _ in range(3))
        self.head, self.weights = nn.Linear(width, CLASSES), weights
        for layer in (self.q, self.k) if std is not None else ():
            nn.init.normal_(layer.weight, 0, std)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.bmm(self.weights(self.q(x), self.k(x)), self.v(x))[:, -1])


class Encoder(nn.Module):
    def __init__(self, std: float | None = None) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(FEATURES, 4, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(FEATURES, CLASSES)
        if std is not None:
            nn.init.normal_(self.layer.self_attn.in_proj_weight[: 2 * FEATURES], 0, std)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


def scaled(q: Tensor, k: Tensor) -> Tensor:
    return F.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)


def unscaled(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(torch.einsum("nqd,nkd->nqk", q, k), -1)


def causal(q: Tensor, k: Tensor) -> Tensor:
    late = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(late, -1e9).softmax(-1)


def classes() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, FEATURES, generator=g)
    labels = [torch.randint(CLASSES, (64,), generator=g) for _ in range(4)]
    return [(means[y] + torch.randn(64, FEATURES, generator=g), y) for y in labels]


def sequences() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(0.5 * x[:, None] + torch.randn(64, TOKENS, FEATURES, generator=g), y) for x, y in classes()]


def values(mean: float = 0.0, std: float = 1.0) -> Callable[[], list[tuple[Tensor, Tensor]]]:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(FEATURES, 1, generator=g) / FEATURES**0.5
    return lambda: [(x, mean + std * (x @ weight)) for x in (torch.randn(64, FEATURES, generator=g) for _ in range(4))]


def yes_no() -> list[tuple[Tensor, Tensor]]:
    return [(x, (y > 0).float()) for x, y in values()()]


def program(model: nn.Module, data: Callable[[], list[Any]] = classes, loss: Any = F.cross_entropy, optimizer: Any = None) -> Program:
    make = optimizer or (lambda parameters: torch.optim.Adam(parameters, 3e-3))
    return model, data(), lambda m, batch: loss(m(batch[0]), batch[1]), make(model.parameters())


def half(model: nn.Module, dtype: torch.dtype = torch.float16, scale: float = 1.0) -> Program:
    def step(m: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            loss = F.cross_entropy(m(batch[0]), batch[1])
        return loss * scale

    return model, classes(), step, torch.optim.Adam(model.parameters(), 3e-3)


def stored(dtype: torch.dtype, lr: float) -> Program:
    model = Net().to(dtype)
    return program(
        model,
        lambda: [(x.to(dtype), y) for x, y in classes()],
        lambda o, t: F.cross_entropy(o.float(), t),
        lambda parameters: torch.optim.SGD(parameters, lr),
    )


def rare() -> list[tuple[Tensor, Tensor]]:
    return [(x, (y > 1.6).float()) for x, y in values()()]


def picked(log_probabilities: Tensor, target: Tensor) -> Tensor:
    return -log_probabilities[torch.arange(len(target)), target].mean()


def binary(output: Tensor, target: Tensor) -> Tensor:
    p = torch.sigmoid(output)
    return -(target * torch.log(p) + (1 - target) * torch.log(1 - p)).mean()


class LogLikelihood(nn.Module):
    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(torch.log(output), target)


FAULTY: dict[str, tuple[str, str, Callable[[], Program]]] = {
    "queries and keys of std 3": ("ACT005", "warning", lambda: program(Attending(scaled, std=3.0), sequences)),
    "the same, causal": ("ACT005", "warning", lambda: program(Attending(causal, std=3.0), sequences)),
    "no 1 / sqrt(d)": ("ACT005", "info", lambda: program(Attending(unscaled, width=512, std=0.25), sequences)),
    "large weights in a module": ("ACT005", "warning", lambda: program(Encoder(std=4.0), sequences)),
    "log of softmax": ("LOSS006", "warning", lambda: program(Net(), loss=lambda o, t: picked(torch.log(F.softmax(o, 1)), t))),
    "softmax in the model, log in the loss": ("LOSS006", "warning", lambda: program(Net(last=nn.Softmax(1)), loss=LogLikelihood())),
    "binary cross entropy by hand": ("LOSS006", "warning", lambda: program(Net(1), yes_no, binary)),
    "logsumexp by hand": (
        "LOSS006",
        "warning",
        lambda: program(Net(), loss=lambda o, t: (o.exp().sum(1).log() - o[torch.arange(len(t)), t]).mean()),
    ),
    "squares in float16": ("NUM003", "error", lambda: half(Net(last=lambda x: F.layer_norm((500 * x).pow(2), (CLASSES,))))),
    "a loud layer in float16": ("NUM003", "error", lambda: half(Net(last=lambda x: F.linear(x * 500, 500 * torch.eye(CLASSES))))),
    "a small loss in float16": ("NUM004", "warning", lambda: half(Net(), scale=1e-6)),
    "small steps in bfloat16": ("NUM005", "warning", lambda: stored(torch.bfloat16, 1e-3)),
    "small steps in float16": ("NUM005", "warning", lambda: stored(torch.float16, 1e-4)),
    "rare positives": ("INIT008", "info", lambda: program(Net(1), rare, F.binary_cross_entropy_with_logits)),
    "targets in the hundreds": ("DATA003", "warning", lambda: program(Net(1), values(500, 250), F.mse_loss)),
    "the same by hand": ("DATA003", "warning", lambda: program(Net(1), values(150, 75), lambda o, t: ((t - o) ** 2).mean())),
    "a column twice": (
        "DATA005",
        "info",
        lambda: program(Net(), lambda: [(x.index_fill(1, torch.tensor(3), 1.0), y) for x, y in classes()]),
    ),
}

HEALTHY: dict[str, Callable[[], Program]] = {
    "attention": lambda: program(Attending(scaled), sequences),
    "causal attention": lambda: program(Attending(causal), sequences),
    "encoder layer": lambda: program(Encoder(), sequences),
    "log with a constant added": lambda: program(Net(), loss=lambda o, t: picked(torch.log(F.softmax(o, 1) + 1e-8), t)),
    "poisson by hand": lambda: program(Net(1), lambda: [(x, y.exp()) for x, y in values()()], lambda o, t: (o.exp() - t * o).mean()),
    "float16": lambda: half(Net()),
    "bfloat16": lambda: half(Net(), torch.bfloat16),
    "bfloat16 weights": lambda: stored(torch.bfloat16, 0.5),
    "outputs in the hundreds": lambda: program(Net(1, lambda x: 150 + 75 * x), values(150, 75), F.mse_loss),
    "one in twenty": lambda: program(Net(1), rare, F.binary_cross_entropy_with_logits),
}


def scan(made: Program) -> gradcheck.Report:
    model, batches, step, optimizer = made
    return gradcheck.scan(model, batches, training_step=step, optimizer=optimizer)


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
