"""Random training workloads, drawn from a seed: task, architecture, initialisation, depth, normalisation, optimizer, rate.

Nothing is faulty or healthy by construction: `train` tells by really training.
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
    "selu": nn.SELU,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "hardtanh": nn.Hardtanh,
}
BATCH = 64


@dataclass
class Task:
    """x: [N, ...]; y: [N] or, with a label a step, [N, T]; `classes` is None for regression, where y: [N, D]."""

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


def _images(rng: random.Random) -> Task:
    d = load_digits()
    scale = 255.0 if rng.random() < 0.15 else 1.0
    name = "digits" if scale == 1 else "digits-0-to-255"
    return Task(name, torch.tensor(d.images / 16.0 * scale, dtype=torch.float32).unsqueeze(1), torch.tensor(d.target), 10)


def _sequences(rng: random.Random) -> Task:
    """Tokens 0..7; a label for the whole sequence in 0..3, or the next token of a Markov chain at every step."""
    g = torch.Generator().manual_seed(rng.randrange(10**6))
    length = rng.choice((8, 16, 32))
    kind = rng.choice(("majority", "first", "last", "next"))
    if kind == "next":
        steps = torch.softmax(3 * torch.randn(8, 8, generator=g), 1)
        tokens = [torch.randint(0, 8, (1024,), generator=g)]
        for _ in range(length):
            tokens.append(torch.multinomial(steps[tokens[-1]], 1, generator=g)[:, 0])
        x = torch.stack(tokens, 1)
        return Task(f"sequence-next-{length}", x[:, :-1], x[:, 1:].contiguous(), 8)
    x = torch.randint(0, 8, (1024, length), generator=g)
    y = x[:, 0] % 4 if kind == "first" else x[:, -1] % 4 if kind == "last" else (x < 4).sum(1) * 3 // length
    return Task(f"sequence-{kind}-{length}", x, y, 4)


def _vectors(rng: random.Random) -> Task:
    if rng.random() < 0.12:
        x = _standardised(load_digits().data)
        return Task("autoencoder-digits", x, x, None)
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
    layers.append(nn.Linear(width, task.classes or task.y.shape[1]))
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
    """Logits [N, C] from the last state, or [N, C, T] from every state."""

    def __init__(self, kind: str, width: int, layers: int, classes: int, every_step: bool) -> None:
        super().__init__()
        self.every_step = every_step
        self.embed = nn.Embedding(8, 32)
        self.rnn = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[kind](32, width, layers, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states = self.rnn(self.embed(x))[0]
        return self.head(states).transpose(1, 2) if self.every_step else self.head(states[:, -1])


class Transformer(nn.Module):
    """Logits [N, C] from the mean over tokens, or [N, C, T] with causal attention."""

    def __init__(self, width: int, depth: int, norm_first: bool, length: int, classes: int, every_step: bool) -> None:
        super().__init__()
        self.every_step = every_step
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length) if every_step else None)
        self.embed, self.place = nn.Embedding(8, width), nn.Parameter(torch.randn(length, width) * 0.02)
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=norm_first)
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.blocks(self.embed(x) + self.place, mask=self.mask)
        return self.head(tokens).transpose(1, 2) if self.every_step else self.head(tokens.mean(1))


def _sequence_model(rng: random.Random, task: Task) -> tuple[nn.Module, str]:
    every, classes = task.y.dim() == 2, task.classes or 0
    if rng.random() < 0.5:
        kind, width, layers = rng.choice(("rnn", "gru", "lstm")), rng.choice((32, 64)), rng.choice((1, 2))
        return Recurrent(kind, width, layers, classes, every), f"{kind} width={width} layers={layers}"
    width, depth, first = rng.choice((32, 64)), rng.choice((1, 2, 4, 8)), rng.random() < 0.5
    return Transformer(width, depth, first, task.x.shape[1], classes, every), f"transformer width={width} depth={depth} pre={first}"


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


# Name -> (class, centre of the rates that are drawn, other arguments).
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], float, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, 0.1, {}),
    "momentum": (torch.optim.SGD, 0.01, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, 0.01, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, 2e-3, {}),
    "adamw": (torch.optim.AdamW, 2e-3, {}),
    "nadam": (torch.optim.NAdam, 2e-3, {}),
    "rmsprop": (torch.optim.RMSprop, 1e-3, {}),
    "adagrad": (torch.optim.Adagrad, 1e-2, {}),
}


def _optimizer(rng: random.Random, model: nn.Module) -> tuple[torch.optim.Optimizer, str]:
    name = rng.choice(("sgd", "sgd", "momentum", "momentum", "nesterov", "adam", "adam", "adam", "adamw", "nadam", "rmsprop", "adagrad"))
    kind, centre, arguments = OPTIMIZERS[name]
    lr = float(f"{centre * 10 ** rng.gauss(0, 1.2):.2g}")
    decay = rng.choice((0.0, 0.0, 0.0, 1e-4, 1e-2, 0.3))
    if decay:
        arguments = {**arguments, "weight_decay": decay}
    return kind(model.parameters(), lr=lr, **arguments), f"{name} lr={lr:g}" + (f" decay={decay:g}" if decay else "")


def draw(seed: int) -> Case:
    """The workload of a seed; always the same one."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    family = rng.choice(("mlp", "mlp", "mlp", "cnn", "sequence", "sequence"))
    task = {"mlp": _vectors, "cnn": _images, "sequence": _sequences}[family](rng)
    model, words = {"mlp": _mlp, "cnn": _cnn, "sequence": _sequence_model}[family](rng, task)
    init = _initialise(rng, model)
    optimizer, recipe = _optimizer(rng, model)
    loss = nn.CrossEntropyLoss() if task.classes else nn.MSELoss()
    batches = task.batches(torch.Generator().manual_seed(seed))
    return Case(seed, f"{task.name} | {words} | {init} | {recipe}", model, batches, loss, optimizer, task)


def chance(task: Task) -> float:
    """Loss of the best constant prediction."""
    if task.classes is None:
        return task.y.var(0, correction=0).mean().item()
    share = torch.bincount(task.y.flatten(), minlength=task.classes).double() / task.y.numel()
    return -sum(p * math.log(p) for p in share.tolist() if p > 0)


def train(case: Case, steps: int = 300, order: int | None = None) -> float:
    """Trains in place, new order of the samples each epoch. The final training loss in units of chance; infinite if it diverged.

    `order`: seed of the order of the samples.
    """
    generator = torch.Generator().manual_seed(case.seed + 1 if order is None else order)
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
