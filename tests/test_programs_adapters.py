"""Programs with low-rank adapters written in several ways, trained and not; and modules that only look like them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import gradcheck
from gradcheck.types.report import Report

Tensor = torch.Tensor
WIDTH, RANK = 16, 2


class Around(nn.Module):
    scale = 1.0

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.a, self.b = nn.Parameter(torch.randn(RANK, base.in_features) / 4), nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)


class Inside(nn.Linear):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features)
        self.load_state_dict(base.state_dict())
        self.requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(base.in_features, RANK) / 4), nn.Parameter(torch.zeros(RANK, base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.a @ self.b


class OfLayers(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.linear, down, up = base, nn.Linear(base.in_features, RANK, bias=False), nn.Linear(RANK, base.out_features, bias=False)
        nn.init.zeros_(up.weight)
        self.adapter = nn.Sequential(down, nn.Dropout(0.1), up)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.adapter(x)


class Product(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(RANK, columns) / 4), nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def parametrized(base: nn.Linear) -> nn.Module:
    parametrize.register_parametrization(base, "weight", Product(*base.weight.shape))
    base.parametrizations.weight.original.requires_grad_(False)
    return base


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(4)), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


Wrap = Callable[[nn.Linear], nn.Module]
WAYS: dict[str, Wrap] = {"around": Around, "inside": Inside, "of layers": OfLayers, "parametrized": parametrized}
way = pytest.mark.parametrize("wrap", WAYS.values(), ids=WAYS)


def adapted(wrap: Wrap, pattern: str) -> Net:
    torch.manual_seed(0)
    net = Net().requires_grad_(False)
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.Linear) and re.fullmatch(pattern, name):
            parent, _, leaf = name.rpartition(".")
            setattr(net.get_submodule(parent), leaf, wrap(layer))
    net.head.requires_grad_(True)
    return net


def scan(net: nn.Module, held: list[nn.Parameter] | None = None) -> Report:
    x = torch.randn(128, WIDTH, generator=torch.Generator().manual_seed(0))
    batches = [(a, (a[:, 0] > 0).long() + (a[:, 1] > 0).long()) for a in x.split(32)]
    optimizer = torch.optim.AdamW(held or [p for p in net.parameters() if p.requires_grad], lr=3e-3)
    return gradcheck.scan(net, batches, loss=F.cross_entropy, optimizer=optimizer, steps=8, config={"select": ["TUNE", "GRAPH003"]})


def judged(report: Report) -> list[tuple[str, str, str | None]]:
    assert not [s for s in report.rules if s.status in ("crashed", "not-measured")]
    return [(f.code, f.severity, f.cause) for f in report.findings]


@way
def test_adapters_of_a_kind_of_layers_are_left_in_peace(wrap):
    report = scan(adapted(wrap, r"blocks\.\d\.fc1"))
    adaptation = report.measurement.adaptation
    assert judged(report) == [] and adaptation is not None
    assert [a.layer for a in adaptation.adapters] == [f"blocks.{i}.fc1" for i in range(4)]
    assert [name for name, _ in adaptation.bare] == [f"blocks.{i}.fc2" for i in range(4)]
    assert {(a.rank, a.trainable, a.off) for a in adaptation.adapters} == {(RANK, True, False)}


@way
def test_a_block_that_a_pattern_left_out(wrap):
    report = scan(adapted(wrap, r"blocks\.[023]\.fc\d"))
    assert judged(report) == [("TUNE001", "warning", None)]
    assert report.findings[0].layers == ("blocks.1.fc1", "blocks.1.fc2")


@way
def test_adapters_that_are_frozen_with_their_model(wrap):
    net = adapted(wrap, r"blocks\.\d\.fc1").requires_grad_(False)
    net.head.requires_grad_(True)
    assert judged(scan(net)) == [("TUNE001", "warning", None)]


@way
def test_adapters_that_came_after_the_optimizer(wrap):
    net = adapted(wrap, r"blocks\.\d\.fc1")
    found = {code: (severity, cause) for code, severity, cause in judged(scan(net, list(net.head.parameters())))}
    assert found["TUNE001"] == ("warning", None)
    assert found["GRAPH003"] in (("warning", "TUNE001"), ("error", None))


def test_a_frozen_bottleneck_is_no_adapter():
    class Bottleneck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.down, self.up = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, RANK), nn.Linear(RANK, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.up(F.relu(self.down(F.relu(self.wide(x)))))

    net = nn.Sequential(Bottleneck().requires_grad_(False), Bottleneck().requires_grad_(False), nn.Linear(WIDTH, 3))
    report = scan(net)
    assert judged(report) == [] and report.measurement.adaptation is None


@way
def test_scale_and_size_are_told_from_what_a_layer_adds(wrap):
    adaptation = scan(adapted(wrap, r"blocks\.\d\.fc1")).measurement.adaptation
    assert adaptation is not None
    assert [a.scale for a in adaptation.adapters] == pytest.approx([1.0] * 4, rel=1e-4)
    assert all(0.01 < (a.size or 0) < 2 for a in adaptation.adapters)


@pytest.mark.parametrize(("scale", "size"), [(0.5, None), (8.0, None), (1000.0, 1.0)])
def test_a_scale_of_any_size(scale, size):
    class Scaled(Around):
        pass

    Scaled.scale = scale
    report = scan(adapted(Scaled, r"blocks\.\d\.fc1"))
    adaptation = report.measurement.adaptation
    assert adaptation is not None and adaptation.adapters[0].scale == pytest.approx(scale, rel=1e-3)
    assert [f.code for f in report.findings] == (["TUNE002"] if size else [])


def test_what_is_no_plain_product_has_no_scale():
    class Gated(Around):
        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + torch.tanh(x @ self.a.T @ self.b.T)

    adaptation = scan(adapted(Gated, r"blocks\.\d\.fc1")).measurement.adaptation
    assert adaptation is not None and {(a.rank, a.scale) for a in adaptation.adapters} == {(RANK, None)}
