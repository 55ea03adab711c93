"""Random training workloads, drawn from a seed: task, architecture, initialisation, depth, normalisation, optimizer, rate.

Nothing is sick or healthy by construction: `train` tells by really training.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "silu": nn.SiLU,
}
BATCH = 64


@dataclass
class Task:
    """x: [N, ...], y: [N]; `classes` is None for regression."""

    name: str
    x: torch.Tensor
    y: torch.Tensor
    classes: int | None

    def batches(self, generator: torch.Generator) -> list[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.x), generator=generator)
        return [(self.x[i], self.y[i]) for i in order.split(BATCH) if len(i) == min(BATCH, len(order))]


@dataclass
class Case:
    """A workload with the words that describe it."""

    seed: int
    words: str
    model: nn.Module
    batches: list[Any]
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    task: Task


def _standardised(x: np.ndarray) -> torch.Tensor:
    return torch.tensor((x - x.mean(0)) / (x.std(0) + 1e-6), dtype=torch.float32)


def _task(rng: random.Random, images: bool, sequences: bool) -> Task:
    if images:
        d = load_digits()
        return Task("digits", torch.tensor(d.images / 16.0, dtype=torch.float32).unsqueeze(1), torch.tensor(d.target), 10)
    if sequences:
        g = torch.Generator().manual_seed(rng.randrange(10**6))
        length = rng.choice((8, 16, 32))
        x = torch.randint(0, 8, (1024, length), generator=g)
        kind = rng.choice(("majority", "first", "last"))
        y = x[:, 0] % 4 if kind == "first" else x[:, -1] % 4 if kind == "last" else (x < 4).sum(1) * 3 // length
        return Task(f"sequence-{kind}-{length}", x, y, 4)
    name = rng.choice(("digits", "cancer", "wine", "diabetes", "teacher"))
    if name == "diabetes":
        d = load_diabetes()
        y = torch.tensor((d.target - d.target.mean()) / d.target.std(), dtype=torch.float32)
        if rng.random() < 0.25:
            y = torch.tensor(d.target, dtype=torch.float32)
            name += "-raw-target"
        return Task(name, _standardised(d.data), y[:, None], None)
    if name == "teacher":
        g = torch.Generator().manual_seed(rng.randrange(10**6))
        x = torch.randn(1024, 20, generator=g)
        w = torch.randn(20, 3, generator=g)
        return Task(name, x, (x @ w).argmax(1), 3)
    d = {"digits": load_digits, "cancer": load_breast_cancer, "wine": load_wine}[name]()
    x = _standardised(d.data)
    if rng.random() < 0.12:
        x = x * rng.choice((0.01, 100.0))
        name += "-scaled"
    return Task(name, x, torch.tensor(d.target), int(d.target.max()) + 1)


class Residual(nn.Module):
    def __init__(self, body: nn.Module, scale: float) -> None:
        super().__init__()
        self.body, self.scale = body, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * self.body(x)


def _mlp(rng: random.Random, task: Task) -> tuple[nn.Module, str]:
    depth, width = rng.choice((1, 2, 3, 4, 6, 8, 12, 16, 24, 32)), rng.choice((32, 64, 128))
    act, norm, skip = rng.choice(list(ACTIVATIONS)), rng.choice(("none", "none", "bn", "ln")), rng.random() < 0.25
    drop = rng.choice((0.0, 0.0, 0.0, 0.1, 0.5))
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(task.x[0].numel(), width), ACTIVATIONS[act]()]
    for _ in range(depth):
        body: list[nn.Module] = [nn.Linear(width, width)]
        body += [nn.BatchNorm1d(width)] if norm == "bn" else [nn.LayerNorm(width)] if norm == "ln" else []
        body += [ACTIVATIONS[act](), nn.Dropout(drop)] if drop else [ACTIVATIONS[act]()]
        layers += [Residual(nn.Sequential(*body), rng.choice((1.0, depth**-0.5)))] if skip else body
    layers.append(nn.Linear(width, task.classes or 1))
    return nn.Sequential(*layers), f"mlp depth={depth} width={width} {act} norm={norm} skip={skip} drop={drop}"


def _cnn(rng: random.Random, task: Task) -> tuple[nn.Module, str]:
    depth, width = rng.choice((2, 4, 6, 10, 16)), rng.choice((16, 32))
    act, norm, skip = rng.choice(list(ACTIVATIONS)), rng.choice(("none", "bn", "gn")), rng.random() < 0.35
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), ACTIVATIONS[act]()]
    for _ in range(depth):
        body: list[nn.Module] = [nn.Conv2d(width, width, 3, padding=1)]
        body += [nn.BatchNorm2d(width)] if norm == "bn" else [nn.GroupNorm(4, width)] if norm == "gn" else []
        body += [ACTIVATIONS[act]()]
        layers += [Residual(nn.Sequential(*body), 1.0)] if skip else body
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 10)]
    return nn.Sequential(*layers), f"cnn depth={depth} width={width} {act} norm={norm} skip={skip}"


class Recurrent(nn.Module):
    def __init__(self, kind: str, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 32)
        self.rnn = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind](32, width, layers, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(self.embed(x))[0][:, -1])


class Transformer(nn.Module):
    def __init__(self, width: int, depth: int, norm_first: bool, length: int, classes: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(8, width), nn.Parameter(torch.randn(length, width) * 0.02)
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=norm_first)
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.embed(x) + self.place).mean(1))


def _sequence_model(rng: random.Random, task: Task) -> tuple[nn.Module, str]:
    if rng.random() < 0.5:
        kind, width, layers = rng.choice(("rnn", "gru", "lstm")), rng.choice((32, 64)), rng.choice((1, 2))
        return Recurrent(kind, width, layers, 4), f"{kind} width={width} layers={layers}"
    width, depth, first = rng.choice((32, 64)), rng.choice((1, 2, 4, 8)), rng.random() < 0.5
    return Transformer(width, depth, first, task.x.shape[1], 4), f"transformer width={width} depth={depth} pre={first}"


def _initialise(rng: random.Random, model: nn.Module) -> str:
    name = rng.choice(("default", "default", "default", "he", "xavier", "orthogonal", "normal", "scaled"))
    gain = rng.choice((0.5, 1.0, 1.0, 1.5))
    std = rng.choice((0.001, 0.01, 0.02, 0.1, 0.3, 1.0))
    factor = rng.choice((0.1, 0.3, 3.0, 10.0))
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if not isinstance(module, (nn.Linear, nn.Conv2d)) or weight is None:
            continue
        if name == "he":
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
        elif name == "xavier":
            nn.init.xavier_uniform_(weight, gain)
        elif name == "orthogonal":
            nn.init.orthogonal_(weight, gain)
        elif name == "normal":
            nn.init.normal_(weight, 0.0, std)
        elif name == "scaled":
            weight.data.mul_(factor)
    return {"xavier": f"xavier*{gain}", "orthogonal": f"orth*{gain}", "normal": f"normal({std})", "scaled": f"default*{factor}"}.get(
        name, name
    )


def _optimizer(rng: random.Random, model: nn.Module) -> tuple[torch.optim.Optimizer, str]:
    name = rng.choice(("sgd", "momentum", "adam", "adam", "adamw", "rmsprop"))
    centre = {"sgd": 0.1, "momentum": 0.01, "adam": 2e-3, "adamw": 2e-3, "rmsprop": 1e-3}[name]
    lr = float(f"{centre * 10 ** rng.gauss(0, 1.2):.2g}")
    parameters = list(model.parameters())
    optimizer: torch.optim.Optimizer = {
        "sgd": lambda: torch.optim.SGD(parameters, lr),
        "momentum": lambda: torch.optim.SGD(parameters, lr, momentum=0.9),
        "adam": lambda: torch.optim.Adam(parameters, lr),
        "adamw": lambda: torch.optim.AdamW(parameters, lr),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, lr),
    }[name]()
    return optimizer, f"{name} lr={lr:g}"


def draw(seed: int) -> Case:
    """The workload of a seed; always the same one."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    family = rng.choice(("mlp", "mlp", "mlp", "cnn", "sequence", "sequence"))
    task = _task(rng, family == "cnn", family == "sequence")
    model, words = {"mlp": _mlp, "cnn": _cnn, "sequence": _sequence_model}[family](rng, task)
    init = _initialise(rng, model)
    optimizer, recipe = _optimizer(rng, model)
    loss = nn.CrossEntropyLoss() if task.classes else nn.MSELoss()
    batches = task.batches(torch.Generator().manual_seed(seed))
    return Case(seed, f"{task.name} | {words} | {init} | {recipe}", model, batches, loss, optimizer, task)


def chance(task: Task) -> float:
    """Loss of the best constant prediction."""
    if task.classes is None:
        return task.y.var(correction=0).item()
    share = torch.bincount(task.y, minlength=task.classes).double() / len(task.y)
    return -sum(p * math.log(p) for p in share.tolist() if p > 0)


def train(case: Case, steps: int = 300) -> float:
    """Trains in place, new order of the samples each epoch. The final training loss in units of chance; infinite if it diverged."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    step = 0
    while step < steps:
        for x, y in case.task.batches(generator):
            case.optimizer.zero_grad()
            loss = case.loss(case.model(x), y)
            loss.backward()
            case.optimizer.step()
            step += 1
            if not math.isfinite(loss.item()):
                return math.inf
            if step >= steps:
                break
    with torch.no_grad():
        losses = [case.loss(case.model(x), y).item() for x, y in case.batches]
    return float(np.mean(losses)) / chance(case.task)
