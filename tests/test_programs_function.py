"""Programs whose gradient is not the derivative of their loss, whose samples meet, or that ignore their input; and healthy ones alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gradcheck

Tensor = torch.Tensor
CLASSES, LENGTH, FEATURES = 4, 6, 8


def same(x: Tensor) -> Tensor:
    return x


class Net(nn.Module):
    """[N, LENGTH, FEATURES] -> [N, CLASSES]; `middle` sees the sequence, `last` the logits."""

    def __init__(self, middle: Any = same, last: Any = same) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(FEATURES, 16), nn.Linear(16, CLASSES)
        self.middle, self.last = middle, last

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(self.head(self.middle(h).mean(1)))


class Gelu(Function):
    """The quick approximation, its backward without the product rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(1.702 * x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * torch.sigmoid(1.702 * x)


class Linear(Function):
    """A layer that averages the gradient of its bias instead of summing it."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return x @ weight.T + bias

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.flatten(0, 1).T @ x.flatten(0, 1), gradient.mean((0, 1))


class Closure(nn.Module):
    """Makes its Function while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        scale = 2.0

        class Scaled(Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                return x * scale

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Tensor:
                return -gradient * scale

        return Scaled.apply(x)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(16, 16) / 4), nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(Linear.apply(x, self.weight, self.bias))


class Spike(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient / (1 + 4 * x.abs()) ** 2


class Reversal(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -0.1 * gradient


class Fused(Function):
    """A cross entropy that makes its gradient in the forward pass, right where the loss is trained on as it is."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward((logits.softmax(1) - F.one_hot(target, CLASSES)) / len(target))
        return F.cross_entropy(logits, target)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0], None


class Assigned(Function):
    """Writes to what it is given behind autograd's back, where nobody reads what was there before."""

    @staticmethod
    def forward(ctx: Any, memory: Tensor, value: Tensor) -> Tensor:
        memory.data[..., 0] = value
        return memory

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, gradient[..., 0]


class Remembering(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        left_over = 3 * x.detach()
        return Assigned.apply(torch.stack([left_over, x.sin()], -1), x).sum(-1)


class Sine(Function):
    """A right one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0].cos()


class Adversarial(Net):
    """Its features are trained against a second head, too."""

    def __init__(self, middle: Any = same) -> None:
        super().__init__(middle)
        self.domain = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.middle(torch.tanh(self.first(x))).mean(1)
        return self.head(h) + 0.1 * self.domain(Reversal.apply(h))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **more: Any) -> None:
        super().__init__()
        self.rnn = kind(16, 16, **more)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class Cells(nn.Module):
    """Steps over the first axis by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        h, states = x.new_zeros(x.shape[1], 16), []
        for step in x:
            h = self.cell(step, h)
            states.append(h)
        return torch.stack(states)


class Attending(nn.Module):
    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, **more)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class HandNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((0, 1))) / (x.var((0, 1)) + 1e-5).sqrt()


def hooked(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def middle(x: Tensor) -> Tensor:
        if x.requires_grad:
            x.register_hook(change)
        return x

    return middle


def data() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, LENGTH, FEATURES, generator=g)
    labels = [torch.randint(CLASSES, (32,), generator=g) for _ in range(4)]
    return [(means[y] + torch.randn(32, LENGTH, FEATURES, generator=g), y) for y in labels]


def swapped() -> list[tuple[Tensor, Tensor]]:
    """Time comes first."""
    return [(x.transpose(0, 1).contiguous(), y) for x, y in data()]


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(FEATURES, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(0))


class Tagger(nn.Module):
    """[N, T] token ids -> a class for each."""

    def __init__(self, **more: Any) -> None:
        super().__init__()
        self.embedding, self.rnn, self.head = nn.Embedding(12, 16), nn.LSTM(16, 16, **more), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(x))[0])


def tags() -> DataLoader[Any]:
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(12, (128, LENGTH), generator=g)
    return DataLoader(TensorDataset(tokens, tokens % 4), batch_size=32)


def tagged(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.reshape(-1, 4), target.reshape(-1))


def scan(model: nn.Module, batches: Any = None, loss: Any = F.cross_entropy) -> gradcheck.Report:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    return gradcheck.scan(model, data() if batches is None else batches, loss=loss, optimizer=optimizer)


PLACES = torch.linspace(-1, 1, 64 * 16).sin().view(64, 16)  # an encoding of 64 positions

FAULTY: dict[str, tuple[str, Callable[[], gradcheck.Report]]] = {
    "product rule forgotten": ("GRAPH005", lambda: scan(Net(Gelu.apply))),
    "gradient of a bias averaged": ("GRAPH005", lambda: scan(Net(Layer()))),
    "a Function made while running, its sign wrong": ("GRAPH005", lambda: scan(Net(Closure()))),
    "a loss that is halved, whose gradient is not": ("GRAPH005", lambda: scan(Net(), loss=lambda y, t: 0.5 * Fused.apply(y, t))),
    "a hook that turns the gradient": ("GRAPH005", lambda: scan(Net(hooked(lambda g: -g)))),
    "lstm": ("GRAPH007", lambda: scan(Net(Recurrent(nn.LSTM)))),
    "cells": ("GRAPH007", lambda: scan(Net(Cells()))),
    "transformer": ("GRAPH007", lambda: scan(Net(Attending()))),
    "reshape": ("GRAPH007", lambda: scan(Net(lambda h: h.permute(1, 0, 2).reshape(h.shape)))),
    "attention weights over the batch": ("GRAPH007", lambda: scan(Net(lambda h: h * F.softmax(h.sum(-1, keepdim=True), 0)))),
    "softmax by a function over the batch": ("GRAPH007", lambda: scan(Net(last=lambda y: F.log_softmax(y, 0)), loss=F.nll_loss)),
    "running sum over the batch": ("GRAPH007", lambda: scan(Net(lambda h: h.cumsum(0) / 32))),
    "positions along the batch": ("GRAPH007", lambda: scan(Net(lambda h: h + PLACES[: len(h), None]))),
    "a tagger that reads down the batch": ("GRAPH007", lambda: scan(Tagger(), tags(), tagged)),
    "input multiplied by zero": ("GRAPH008", lambda: scan(Net(lambda h: h * 0.0))),
}

HEALTHY: dict[str, Callable[[], gradcheck.Report]] = {
    "right Function": lambda: scan(Net(Sine.apply)),
    "memory that is written to": lambda: scan(Adversarial(Remembering())),
    "spikes": lambda: scan(Net(Spike.apply)),
    "gradient reversal": lambda: scan(Adversarial()),
    "gradient reversal, a loss that counts on a 1": lambda: scan(Net(Reversal.apply), loss=Fused.apply),
    "gradients clipped by a hook": lambda: scan(Net(hooked(lambda g: g.clamp(-0.01, 0.01)))),
    "stopped gradient": lambda: scan(Net(lambda h: h - h.mean(-1, keepdim=True).detach())),
    "lstm": lambda: scan(Net(Recurrent(nn.LSTM, batch_first=True))),
    "transformer": lambda: scan(Net(Attending(batch_first=True))),
    "time first": lambda: scan(TimeFirst(), swapped()),
    "normalization by hand": lambda: scan(Net(HandNorm())),
    "positions": lambda: scan(Net(lambda h: h + PLACES[: h.shape[1]])),
    "noise": lambda: scan(Net(lambda h: h + 0.1 * torch.randn_like(h))),
    "tagger": lambda: scan(Tagger(batch_first=True), tags(), tagged),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_program_gets_its_code(name: str) -> None:
    torch.manual_seed(0)
    code, run = FAULTY[name]
    report = run()
    severities = [f.severity for f in report.findings if f.code == code]
    assert severities and severities[0] != "info", [(f.code, f.severity, f.message) for f in report.findings]


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_program_gets_none_of_them(name: str) -> None:
    torch.manual_seed(0)
    report = HEALTHY[name]()
    found = [(f.code, f.message) for f in report.findings if f.severity != "info"]
    assert [x for x in found if x[0] in ("GRAPH005", "GRAPH007", "GRAPH008")] == []
    assert not [s for s in report.rules if s.status == "crashed"]
