"""Embeddings that nothing holds apart: self-distillation with and without what keeps it from collapsing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from tests.scripts import codes, complaints, scan, written

SCRIPT = """
import copy

import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
means = torch.randn(10, 64)
images = means[torch.randint(10, (1500,))] + 0.5 * torch.randn(1500, 64)


def mlp(inputs, hidden, outputs):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def view(x):
    return x * (0.8 + 0.4 * torch.rand(len(x), 1)) * (torch.rand_like(x) > 0.2)


def cosine(a, b):
    return -F.cosine_similarity(a, b, dim=1).mean()


def apart(z):
    spread = torch.sqrt(z.var(0) + 1e-4)
    z = z - z.mean(0)
    covariance = (z.T @ z / (len(z) - 1)).fill_diagonal_(0)
    return 25 * F.relu(1 - spread).mean() + covariance.pow(2).sum() / z.shape[1]


def contrast(a, b):
    z = F.normalize(torch.cat([a, b]), dim=1)
    similarity = (z @ z.T / 0.2).fill_diagonal_(float("-inf"))
    n = torch.arange(len(a))
    return F.cross_entropy(similarity, torch.cat([n + len(a), n]))


online, predictor = mlp(64, 128, 32), mlp(32, 32, 32)
target = copy.deepcopy(online).requires_grad_(False)
optimizer = torch.optim.Adam([*online.parameters()PREDICTED], lr=1e-3)
for step in range(120):
    x = images[torch.randint(0, 1500, (128,))]
    v1, v2 = view(x), view(x)
    z1, z2 = online(v1), online(v2)
    with torch.no_grad():
        t1, t2 = target(v1), target(v2)
    loss = LOSS
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for a, b in zip(target.parameters(), online.parameters()):
            a.lerp_(b, 0.02)
        for a, b in zip(target.buffers(), online.buffers()):
            a.copy_(b)
"""
SIMSIAM = "(cosine(predictor(z1), z2.detach()) + cosine(predictor(z2), z1.detach())) / 2"


def script(loss: str) -> str:
    return SCRIPT.replace("PREDICTED", ", *predictor.parameters()" if "predictor" in loss else "").replace("LOSS", loss)


@pytest.mark.parametrize(
    "loss",
    ["cosine(z1, z2)", "(cosine(z1, z2.detach()) + cosine(z2, z1.detach())) / 2", "F.mse_loss(F.normalize(z1), F.normalize(z2))"],
    ids=["both sides", "no predictor", "squares"],
)
def test_nothing_holds_the_embeddings_apart(loss, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, script(loss))
    finding = next(f for r in scan(path) for f in r.findings if f.code == "ACT004")
    assert finding.severity == "error" and "one point" in finding.message
    assert "loss" in path.read_text().splitlines()[finding.location.line - 1] or "cosine" in finding.location.scope


@pytest.mark.parametrize(
    "loss",
    [
        SIMSIAM,
        "(cosine(predictor(z1), t2) + cosine(predictor(z2), t1)) / 2",
        "25 * F.mse_loss(z1, z2) + apart(z1) + apart(z2)",
        "contrast(z1, z2)",
    ],
    ids=["SimSiam", "BYOL", "VICReg", "SimCLR"],
)
def test_something_does(loss, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reports = scan(written(tmp_path, script(loss)))
    assert "ACT004" not in codes(reports) and complaints(reports) == []


class Pair(nn.Module):
    """Both sides in one module, which gives back no embedding itself; `teacher`: the target is another net of the same kind."""

    def __init__(self, teacher: bool, predicted: bool) -> None:
        super().__init__()
        online, target = (nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(2))
        self.online, self.target = online, target.requires_grad_(False) if teacher else online
        self.predictor = nn.Linear(8, 8) if predicted else nn.Identity()

    def forward(self, a, b):
        return F.cosine_similarity(self.predictor(self.online(a)), self.target(b).detach()).mean()


@pytest.mark.parametrize("teacher", [False, True])
@pytest.mark.parametrize("predicted", [False, True])
def test_modules_in_a_model_that_returns_the_loss(teacher, predicted):
    torch.manual_seed(0)
    data = [torch.randn(64, 16) for _ in range(8)]
    report = gradcheck.scan(
        Pair(teacher, predicted), data, training_step=lambda m, x: 1 - m(x + 1, x), steps=8, config={"select": ["ACT004"]}
    )
    e = report.measurement.embeddings
    assert (e is None) == predicted, e
    assert e is None or (e.stopped and e.constant_loss < e.loss), e


@pytest.mark.parametrize(("predicted", "expected"), [(False, 1), (True, 0)])
def test_a_training_step_of_views(predicted, expected):
    """With a predictor on one side and the gradient stopped on the other, or with neither."""
    torch.manual_seed(0)
    layers = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8)
    model = nn.ModuleDict({"encoder": nn.Sequential(*layers), "predictor": nn.Linear(8, 8)})
    means = torch.randn(6, 16)

    def step(model, x):
        a, b = (model["encoder"](x + 0.3 * torch.randn_like(x)) for _ in range(2))
        return 1 - F.cosine_similarity(*((model["predictor"](a), b.detach()) if predicted else (a, b))).mean()

    data = [means[torch.randint(6, (64,))] + 0.2 * torch.randn(64, 16) for _ in range(8)]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    report = gradcheck.scan(model, data, training_step=step, optimizer=optimizer)
    assert len([f for f in report.findings if f.code == "ACT004"]) == expected
