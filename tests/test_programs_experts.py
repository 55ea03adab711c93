"""Programs with routed experts, one of which gets everything; and others that choose, or hold modules that are alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.types.report import Report

Tensor = torch.Tensor
WIDTH, EXPERTS = 16, 4


class Routed(nn.Module):
    """`dense`: every expert computes all rows. `faulty`: the router starts on its first choices."""

    def __init__(self, chosen: int = 1, dense: bool = False, faulty: bool = False) -> None:
        super().__init__()
        self.chosen, self.dense, self.router = chosen, dense, nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        if faulty:
            nn.init.constant_(self.router.bias[:chosen], 20.0)

    def forward(self, x: Tensor) -> Tensor:
        weights, index = self.router(x).softmax(-1).topk(self.chosen)
        if self.dense:
            shares = torch.zeros(len(x), EXPERTS).scatter(1, index, weights)
            return (torch.stack([e(x) for e in self.experts], -1) * shares[:, None]).sum(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows, place = (index == i).nonzero(as_tuple=True)
            out = out.index_add(0, rows, weights[rows, place, None] * expert(x[rows]))
        return out


class Stacked(nn.Module):
    """The experts are slices of one weight, the router is a module beside them."""

    def __init__(self, faulty: bool = False) -> None:
        super().__init__()
        self.gate, self.experts = Gate(faulty), Slices()

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x, *self.gate(x))


class Gate(nn.Module):
    def __init__(self, faulty: bool) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.1 * torch.randn(EXPERTS, WIDTH)), nn.Parameter(torch.zeros(EXPERTS))
        if faulty:
            nn.init.constant_(self.bias[:1], 20.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = torch.max(F.linear(x, self.weight, self.bias).softmax(-1), dim=-1)
        return weights, index


class Slices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.2 * torch.randn(EXPERTS, WIDTH, WIDTH))

    def forward(self, x: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        return weights[:, None] * (x[:, None] @ self.weight[index])[:, 0]


class Layers(nn.Module):
    """As many layers in a row as there are classes, and an argmax over these: no router."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        self.head = nn.Linear(WIDTH, EXPERTS)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).tanh()
        self.last = self.head(x + 20 * torch.ones(1)).argmax(-1)
        return x


class PerTask(nn.Module):
    """The data say which head a sample is for."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        index = F.one_hot(torch.zeros(len(x), dtype=torch.int64), EXPERTS).float().argmax(-1)
        out = torch.zeros_like(x)
        for i, head in enumerate(self.heads):
            rows = (index == i).nonzero(as_tuple=True)[0]
            out = out.index_add(0, rows, head(x[rows]))
        return out


def scan(mixture: nn.Module) -> Report:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, WIDTH), nn.LayerNorm(WIDTH), mixture, nn.Linear(WIDTH, 1))
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    batches: list[Any] = [(a, a[:, :1] * a[:, 1:2]) for a in x.split(64)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return gradcheck.scan(model, batches, loss=F.mse_loss, optimizer=optimizer, steps=60, config={"select": ["MOE", "LOSS005"]})


def judged(report: Report) -> list[tuple[str, str]]:
    return [(f.code, f.severity) for f in report.findings if f.code == "MOE001"]


FAULTY = {
    "sparse": lambda: Routed(faulty=True),
    "two chosen": lambda: Routed(chosen=2, faulty=True),
    "dense": lambda: Routed(dense=True, faulty=True),
    "stacked": lambda: Stacked(faulty=True),
}
HEALTHY = {"sparse": Routed, "two chosen": lambda: Routed(chosen=2), "dense": lambda: Routed(dense=True), "stacked": Stacked}


@pytest.mark.parametrize("name", FAULTY)
def test_a_router_on_one_choice_is_named(name):
    report = scan(FAULTY[name]())
    assert judged(report) == [("MOE001", "error")]
    found = next(f for f in report.findings if f.code == "MOE001")
    assert found.location is not None and found.location.path.endswith("test_programs_experts.py")


@pytest.mark.parametrize("name", HEALTHY)
def test_routers_that_choose_are_left_in_peace(name):
    report = scan(HEALTHY[name]())
    assert judged(report) == [] and len(report.measurement.routers) == 1


@pytest.mark.parametrize("module", [Layers, PerTask])
def test_not_every_choice_is_a_router(module):
    report = scan(module())
    assert judged(report) == [] and report.measurement.routers == ()
