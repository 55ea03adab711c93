"""Trainings that the CPU and the pretend accelerator are compared on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.types.report import Report

Training = tuple[nn.Module, list[Any], torch.optim.Optimizer]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.body, self.head = kind(6, 12, num_layers=2, batch_first=True), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)[0][:, -1])


class Attending(nn.Module):
    """Tokens in, scores of each class out: embedding, attention written out, residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.norm, self.qkv, self.out = nn.Embedding(11, 16), nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.feed = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.out((q @ k.transpose(1, 2) / 4).softmax(-1) @ v)
        x = x + self.feed(x)
        return self.head(x.mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


def deep() -> nn.Module:
    """Gradients vanish in it: it stalls."""
    return nn.Sequential(*[layer for _ in range(12) for layer in (nn.Linear(6, 6), nn.Sigmoid())], nn.Linear(6, 3))


def images() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


def doubled() -> nn.Module:
    """Softmax in front of cross entropy."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3), nn.Softmax(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "deep": (deep, (6,)),
    "images": (images, (3, 8, 8)),
    "lstm": (lambda: Recurrent(nn.LSTM), (5, 6)),
    "gru": (lambda: Recurrent(nn.GRU), (5, 6)),
    "attending": (Attending, (5,)),
    "doubled": (doubled, (6,)),
}


def training(name: str, device: str, *, rate: float = 1e-2) -> Training:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model = make()
    batches = []
    for _ in range(4):
        x = torch.randint(11, (16, *shape)) if name == "attending" else torch.randn(16, *shape)
        batches.append((x.to(device), (x.float().flatten(1).sum(1) > 0).long().to(device)))
    model = model.to(device)
    return model, batches, torch.optim.AdamW(model.parameters(), lr=rate)


def scan(name: str, device: str) -> Report:
    model, batches, optimizer = training(name, device)
    return gradcheck.scan(model, batches, loss=F.cross_entropy, optimizer=optimizer, config={"steps": 12, "budget": 600})


scanned = functools.cache(scan)


SCRIPT = """
import torch
from torch import nn
torch.manual_seed(0)
device = "{device}"
x = torch.randn(64, 6, device="cpu")
y = (x.sum(1) > 0).long()
model = {model}.to(device)
optimizer = torch.optim.{optimizer}
x, y = x.to(device), y.to(device)
for step in range(6):
    optimizer.zero_grad()
    {forward}
    loss.backward()
    {before}optimizer.step()
"""
_MLP = "nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))"
_LOSS = "loss = nn.functional.cross_entropy(model(x), y)"
SCRIPTS = {
    "dropout": {"model": _MLP, "optimizer": "Adam(model.parameters(), lr=1e-2)", "forward": _LOSS, "before": ""},
    "clipped": {
        "model": _MLP.replace("nn.Dropout(0.2), ", ""),
        "optimizer": "SGD(model.parameters(), lr=0.1, momentum=0.9)",
        "forward": _LOSS,
        "before": "nn.utils.clip_grad_norm_(model.parameters(), 1.0); ",
    },
    "softmax twice": {
        "model": _MLP.replace("nn.Linear(16, 2))", "nn.Linear(16, 2), nn.Softmax(1))"),
        "optimizer": "Adam(model.parameters(), lr=1e-2)",
        "forward": _LOSS,
        "before": "",
    },
    "autocast": {
        "model": _MLP,
        "optimizer": "AdamW(model.parameters(), lr=1e-2)",
        "forward": f"with torch.autocast(device, torch.bfloat16):\n        {_LOSS}",
        "before": "",
    },
}


def script(name: str, device: str) -> str:
    return SCRIPT.format(device=device, **SCRIPTS[name])
