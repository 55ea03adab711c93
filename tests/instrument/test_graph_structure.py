"""What becomes of a layer's output, on nets whose answer can be read off."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.instrument import graph_structure
from gradcheck.instrument.activation_recorder import ActivationRecorder
from gradcheck.instrument.graph_structure import Downstream, Graph, producer


def fates(model: nn.Module, x: torch.Tensor) -> dict[str, Downstream]:
    taps = ActivationRecorder({id(m): name for name, m in model.named_modules()})
    with taps:
        loss = model(x).square().mean()
    found = Graph(loss.grad_fn).fates(taps.calls)
    return {call.name: found[id(call)] for call in taps.calls}


class Written(nn.Module):
    """Two linear layers and what `between` does with the first one's output."""

    def __init__(self, between) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(6, 6), nn.Linear(6, 3), between

    def forward(self, x):
        return self.b(self.between(self.a(x), x))


@pytest.mark.parametrize(
    ("between", "expected"),
    [
        (lambda h, x: F.relu(h), "relu"),
        (lambda h, x: torch.tanh(F.layer_norm(h, (6,))), None),  # the normalization comes first
        (lambda h, x: F.gelu(h.view(2, 2, 6)).view(4, 6), "gelu"),
        (lambda h, x: F.silu(F.dropout(h, 0.5)), "silu"),
        (lambda h, x: F.softmax(h, -1), "softmax"),
        (lambda h, x: F.log_softmax(h, -1), None),
        (lambda h, x: h, None),
    ],
)
def test_the_activation_that_follows(between, expected):
    assert fates(Written(between), torch.randn(4, 6))["a"].activation == expected


@pytest.mark.parametrize(
    ("between", "field"),
    [
        (lambda h, x: F.layer_norm(h, (6,)), "normalized"),
        (lambda h, x: h + x * h.mean(), "residual"),
        (lambda h, x: h * torch.cos(h), "gate"),
    ],
)
def test_what_else_may_become_of_it(between, field):
    fate = fates(Written(between), torch.randn(4, 6, requires_grad=True))["a"]
    assert {f: getattr(fate, f) for f in ("normalized", "residual", "gate")} == {f: f == field for f in ("normalized", "residual", "gate")}


def test_only_the_last_layer_with_weights_is_the_head():
    found = fates(nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.ReLU(), nn.Linear(6, 6)), nn.Linear(6, 3)), torch.randn(4, 6))
    assert {name: fate.head for name, fate in found.items() if name in ("0", "1.1", "2")} == {"0": False, "1.1": False, "2": True}


class Wired(nn.Module):
    """Layers a to f and how they are put together."""

    def __init__(self, wiring) -> None:
        super().__init__()
        self.wiring = wiring
        for name in "abcdef":
            self.add_module(name, nn.Linear(6, 6))

    def forward(self, x):
        return self.wiring(self, x)


@pytest.mark.parametrize(
    ("wiring", "depths", "nets"),
    [
        (lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), "a1 b2 c3", ["abc"]),
        (lambda m, x: torch.cat([m.b(F.relu(m.a(x))), m.d(F.relu(m.c(x)))]), "a1 b2 c1 d2", ["ab", "cd"]),  # actor and critic
        (lambda m, x: m.b(F.relu(m.a(x))) - m.b(F.relu(m.a(x + 1))), "a1 b2", ["ab"]),  # siamese
        (lambda m, x: m.e(F.relu(m.b(m.a(x))) * F.relu(m.d(m.c(x)))), "a1 b2 c1 d2 e3", ["abcde"]),  # towers that meet
        (lambda m, x: torch.cat([m.c(F.relu(m.b(h := F.relu(m.a(x))))), m.e(F.relu(m.d(h)))]), "a1 b2 c3 d2 e3", ["abc", "ade"]),
        (lambda m, x: torch.cat([m.b(h := F.relu(m.a(x))), m.c(h)]), "a1 b2 c2", ["abc"]),  # two heads of one body
        (lambda m, x: torch.cat([m.c(F.relu(m.b(h := F.relu(m.a(x))))), m.d(h)]), "a1 b2 c3 d2", ["abcd"]),  # an early exit
        (lambda m, x: m.e(torch.tanh(m.a(x)) @ m.b(x).T @ m.c(x)), "a1 b1 c1 e2", ["abce"]),  # query, key and value
        (lambda m, x: (h := m.a(x)) + m.b(F.relu(h)), "a1 b2", ["ab"]),
    ],
)
def test_depth_follows_the_graph_and_each_net_is_its_own(wiring, depths, nets):
    found = {n: f for n, f in fates(Wired(wiring), torch.randn(4, 6)).items() if n in set("abcdef")}
    assert " ".join(f"{n}{found[n].depth}" for n in sorted(found)) == depths
    numbers = sorted({i for f in found.values() for i in f.nets})
    assert sorted("".join(sorted(n for n, f in found.items() if i in f.nets)) for i in numbers) == nets


def test_a_layer_that_the_loss_does_not_depend_on_is_not_trained():
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x):
            self.a(x)
            return self.b(x)

    found = fates(Unused(), torch.randn(4, 6))
    assert not found["a"].trained and found["b"].trained


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: F.relu(x).view(2, -1), "relu"),
        (lambda x: F.softmax(x, -1).squeeze(), "softmax"),
        (lambda x: F.relu(x).mean(1), "mean"),  # pooled: no ReLU output any more
    ],
)
def test_the_function_that_made_a_tensor(make, expected):
    x = torch.randn(4, 6).requires_grad_()
    assert producer(make(x))[0] == expected


def test_the_parents_of_a_node_are_asked_for_once(monkeypatch):
    asked = []
    ask = graph_structure.parents
    monkeypatch.setattr(graph_structure, "parents", lambda node: asked.append(node) or ask(node))
    model, x = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5))), torch.randn(3, 4)
    with (taps := ActivationRecorder({id(m): n for n, m in model.named_modules()})):
        loss = (model(x) + x).square().sum()
    graph = Graph(loss.grad_fn)
    graph.fates(taps.calls)
    assert len(asked) == len(graph.order)
