"""Tensors that get a gradient in every step and are in no list of those that are updated."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts import codes, complaints, scan, written

DATA = """
import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(0)
means = torch.randn(10, 32)
y = torch.randint(10, (512,))
x = means[y] + torch.randn(512, 32)
"""
RAW = (
    DATA
    + """
W1 = torch.randn(32, 64) * 0.2
b1 = torch.zeros(64)
W2 = torch.randn(64, 10) * 0.1
for p in [W1, b1, W2]:
    p.requires_grad = True
parameters = [W1, b1, W2]
for step in range(60):
    i = torch.randint(512, (64,))
    loss = F.cross_entropy(torch.relu(x[i] @ W1 + b1) @ W2, y[i])
    for p in parameters:
        p.grad = None
    loss.backward()
    for p in parameters:
        p.data -= 0.3 * p.grad
"""
)
OPTIMIZER = (
    DATA
    + """
table = torch.randn(32, 64).mul(0.2).requires_grad_()
W2 = (torch.randn(64, 10) * 0.1).requires_grad_()
optimizer = torch.optim.Adam([table, W2], lr=1e-2)
for step in range(60):
    i = torch.randint(512, (64,))
    loss = F.cross_entropy(F.linear(torch.relu(x[i] @ table), W2.t()), y[i])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
)
BESIDE = (
    DATA
    + """
net = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64))
head = nn.Parameter(torch.randn(64, 10) * 0.1)
optimizer = torch.optim.Adam([*net.parameters(), head], lr=3e-3)
for step in range(60):
    i = torch.randint(512, (64,))
    loss = F.cross_entropy(net(x[i]) @ head, y[i])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
)


def by_hand(data: str) -> str:
    """A linear regression whose data ask for gradients, too, as first programs do."""
    return f"""
import torch

torch.manual_seed(0)
{data}
y = x.detach() @ torch.tensor([[1.0], [2.0], [3.0]]) + 0.5
w = torch.randn(3, 1, requires_grad=True)
b = torch.zeros(1, requires_grad=True)
for step in range(100):
    loss = ((x @ w + b - y) ** 2).mean()
    loss.backward()
    with torch.no_grad():
        w -= 0.1 * w.grad
        b -= 0.1 * b.grad
        w.grad = None
        b.grad = None
"""


DERIVATIVE = """
import torch

torch.manual_seed(0)
t = torch.linspace(0, 1, 50).view(-1, 1).requires_grad_()
W1 = torch.randn(1, 32, requires_grad=True)
b1 = torch.zeros(32, requires_grad=True)
W2 = (torch.randn(32, 1) * 0.2).requires_grad_()
optimizer = torch.optim.Adam([W1, b1, W2], lr=1e-2)
for step in range(100):
    u = torch.tanh(t @ W1 + b1) @ W2
    du = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
    loss = ((du + 2 * u) ** 2).mean() + (u[0] - 1).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("text", "change", "line", "names"),
    [
        (RAW, ("parameters = [W1, b1, W2]", "parameters = [W2]"), "W1 = ", ("W1", "b1")),
        (OPTIMIZER, ("Adam([table, W2]", "Adam([W2]"), "table = ", ("table",)),
        (BESIDE, ("Adam([*net.parameters(), head]", "Adam(net.parameters()"), "head = ", ()),
    ],
)
def test_weights_that_no_update_knows_are_told_where_they_are_made(text, change, line, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "GRAPH003" not in codes(scan(written(tmp_path, text)))
    path = written(tmp_path, text.replace(*change))
    finding = next(f for r in scan(path) for f in r.findings if f.code == "GRAPH003")
    assert finding.severity == "error"
    assert Path(path).read_text().splitlines()[finding.location.line - 1].startswith(line)
    assert all(name in finding.message for name in names)


@pytest.mark.parametrize("text", [by_hand("x = torch.randn(64, 3, requires_grad=True)"), DERIVATIVE])
def test_data_that_ask_for_gradients_are_no_weights(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reports = scan(written(tmp_path, text))
    assert not {"GRAPH003", "GRAPH001"} & codes(reports)
    assert complaints(reports) == []


MADE_IN_FORWARD = (
    DATA
    + """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(32, 16), nn.Linear(16, 10)
        self.mix = nn.Linear(16, 16)

    def forward(self, x):
        x = torch.relu(self.first(x))
        mix = nn.Linear(16, 16)
        return self.head(torch.relu(mix(x)))

net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for step in range(60):
    i = torch.randint(512, (64,))
    loss = F.cross_entropy(net(x[i]), y[i])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
)


REMADE = "a layer with weights of shape [16, 16] is made anew in each step"


@pytest.mark.parametrize(
    "by",
    [
        "mix = self.mix",
        "mix = nn.LayerNorm((64, 16))",  # always the same
        "mix = nn.Linear(16, 16).requires_grad_(False)",  # random on purpose
        "mix = copy.deepcopy(self.mix)",
        "mix = nn.Linear(16, 16)  # here",
    ],
)
def test_a_layer_that_forward_makes_is_never_trained(tmp_path: Path, by: str) -> None:
    text = "import copy\n" + MADE_IN_FORWARD.replace("mix = nn.Linear(16, 16)\n        return", f"{by}\n        return")
    found = [f for r in scan(written(tmp_path, text), steps=12) for f in r.findings if f.message.startswith(REMADE)]
    places = [(f.code, f.severity, f.location.line) for f in found if f.location is not None]
    assert places == [("GRAPH003", "error", n) for n, line in enumerate(text.splitlines(), 1) if "# here" in line]


ADAPTED = """
body = nn.Sequential(nn.Linear(32, 16), nn.ReLU())
optimizer = torch.optim.Adam(body.parameters(), lr=1e-3)
for step in range(12):
    i, j = torch.randint(512, (2, 64))
    head = nn.Linear(16, 10)
    w = dict(head.named_parameters())
    fit = lambda w, i: F.cross_entropy(F.linear(body(x[i]), w["weight"], w["bias"]), y[i])
    GRADIENTS
    loss = fit({k: v - 0.5 * g for (k, v), g in zip(w.items(), gradients)}, j)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    "by", ["torch.autograd.grad(fit(w, i), list(w.values()), create_graph=True)", "torch.func.grad(fit)(w, i).values()"]
)
def test_a_new_head_that_each_task_adapts_is_no_layer_made_anew(tmp_path: Path, by: str) -> None:
    text = DATA + ADAPTED.replace("GRADIENTS", f"gradients = {by}")
    assert "GRAPH003" not in codes(scan(written(tmp_path, text), steps=12))


def test_a_teacher_that_each_step_makes_is_no_layer(tmp_path: Path) -> None:
    text = MADE_IN_FORWARD.replace("mix = nn.Linear(16, 16)\n        return", "mix = self.mix\n        return")
    teacher = "nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 10))"
    text = text.replace("F.cross_entropy(net(x[i]), y[i])", f"F.mse_loss(net(x[i]), {teacher}(x[i]))")
    assert not [f for r in scan(written(tmp_path, text), steps=12) for f in r.findings if "made anew" in f.message]


def test_heads_that_the_loop_chooses_among_are_trained(tmp_path: Path) -> None:
    text = (
        DATA
        + """
import random
random.seed(0)
body, heads = nn.Linear(32, 16), nn.ModuleList(nn.Linear(16, 10) for _ in range(12))
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.heads = body, heads

    def forward(self, x, t):
        return self.heads[t](torch.relu(self.body(x)))

net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for step in range(200):
    i = torch.randint(512, (64,))
    loss = F.cross_entropy(net(x[i], random.randrange(12)), y[i])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
    )
    assert "GRAPH001" not in codes(scan(written(tmp_path, text), steps=60))
