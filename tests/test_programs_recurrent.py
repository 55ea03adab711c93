"""Recurrences in the spellings that people use: cells in a loop, own cells, plain parameters; faulty ones and healthy ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck

Tensor = torch.Tensor
STEPS, FEATURES, UNITS, CLASSES = 24, 6, 24, 4


def sequences(where: int) -> list[tuple[Tensor, Tensor]]:
    """Sequences whose label is in one step; the other steps are hardly more than zero."""
    g = torch.Generator().manual_seed(0)
    made = []
    for _ in range(8):
        y = torch.randint(CLASSES, (64,), generator=g)
        x = torch.randn(64, STEPS, FEATURES, generator=g) / 100
        x[:, where, :CLASSES] += F.one_hot(y, CLASSES)
        made.append((x, y))
    return made


class Cells(nn.Module):
    """A cell called in a loop; the head sees the last state."""

    def __init__(self, cell: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = cell(FEATURES, UNITS), nn.Linear(UNITS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class OwnCell(nn.Module):
    """tanh of one linear layer of input and state."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.linear, self.units = nn.Linear(inputs + units, units), units

    def forward(self, x: Tensor, h: Tensor | None) -> Tensor:
        h = x.new_zeros(len(x), self.units) if h is None else h
        return torch.tanh(self.linear(torch.cat([x, h], 1)))


class Parameters(nn.Module):
    """Weights as plain parameters; `scale` is the spectral radius of the recurrent one."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.w = nn.Parameter(nn.init.orthogonal_(torch.empty(UNITS, UNITS)) * scale)
        self.u, self.head = nn.Parameter(torch.randn(FEATURES, UNITS) / FEATURES**0.5), nn.Linear(UNITS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), UNITS)
        for x_t in x.unbind(1):
            h = torch.tanh(x_t @ self.u + h @ self.w)
        return self.head(h)


class Stacked(nn.Module):
    """Two fused layers as modules of their own, the first with every output handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.GRU(FEATURES, UNITS), nn.GRU(UNITS, UNITS)
        self.head = nn.Linear(UNITS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x.transpose(0, 1))[0])[1][0])


FAULTY: dict[str, Callable[[], nn.Module]] = {
    "LSTM cell": lambda: Cells(nn.LSTMCell),
    "own cell": lambda: Cells(OwnCell),
    "plain parameters": lambda: Parameters(0.3),
    "two layers": Stacked,
}


def scan(model: nn.Module, where: int) -> gradcheck.Report:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return gradcheck.scan(model, sequences(where), loss=F.cross_entropy, optimizer=optimizer, steps=40)


@pytest.mark.parametrize("name", FAULTY)
def test_a_first_step_that_is_out_of_reach_is_the_headline(name):
    torch.manual_seed(0)
    report = scan(FAULTY[name](), 0)
    assert ("GRAD003", "error") in {(f.code, f.severity) for f in report.headlines}


@pytest.mark.parametrize("name", FAULTY)
def test_the_same_model_is_healthy_where_the_last_step_suffices(name):
    torch.manual_seed(0)
    report = scan(FAULTY[name](), -1)
    assert not {"GRAD003", "INIT004"} & {f.code for f in report.findings if f.severity != "info"}


def test_orthogonal_weights_reach_the_first_step():
    torch.manual_seed(0)
    report = scan(Parameters(1.0), 0)
    assert [f.code for f in report.findings if f.severity == "error"] == []
