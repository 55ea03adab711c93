"""Graphs that a loop keeps: what keeps them, at which expression; and loops that keep none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.capture.script import captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import trainings_of
from gradcheck.types.loop import LoopRetained

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
opt = torch.optim.SGD(model.parameters(), lr=0.1)
x, y = torch.randn(256, 8), torch.randint(3, (256,))
total, losses, stats, best, average = 0.0, [], {"loss": 0.0}, 9.0, None
"""
LOOP = """
def step(rows):
    loss = F.cross_entropy(model(x[rows]), y[rows])
    opt.zero_grad()
    loss.backward()
    opt.step()
    return loss
for epoch in range(2):
    BEFORE
    for rows in torch.randperm(256).split(16):
        loss = step(rows)
        AFTER
"""
OWN_CLASS = """
class Trainer:
    def __init__(self): self.total = torch.zeros(())
    def step(self, rows):
        opt.zero_grad()
        with torch.enable_grad():
            loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.mul(2).backward()
        opt.step()
        self.total = self.total + loss * len(rows)
trainer = Trainer()
for rows in torch.arange(256).split(16): trainer.step(rows)
"""
METERS = """
class Meter:
    def __init__(self): self.sum, self.n = 0, 0
    def update(self, value, n=1): self.sum, self.n = self.sum + value * n, self.n + n
meters = {"train": Meter()}
"""
KEEPERS = {
    "a sum": (LOOP.replace("AFTER", "total += loss"), "total", "loss"),
    "a sum again in each epoch": (LOOP.replace("BEFORE", "total = 0").replace("AFTER", "total = total + loss"), "total", "loss"),
    "a list": (LOOP.replace("AFTER", "losses.append(loss)"), "losses", "loss"),
    "an item": (LOOP.replace("AFTER", "stats['loss'] += loss"), "stats", "loss"),
    "an attribute": (OWN_CLASS, "self.total", "loss * len(rows)"),
    "a meter": (METERS + LOOP.replace("AFTER", "meters['train'].update(loss, len(rows))"), "meters", "loss"),
    "a list of pairs": (LOOP.replace("AFTER", "losses.append((epoch, loss))"), "losses", "loss"),
    "a running mean": (
        LOOP.replace("AFTER", "average = loss if average is None else 0.9 * average + 0.1 * loss"),
        "average",
        None,
    ),
}
HEALTHY = {
    "nothing kept": LOOP.replace("AFTER", "pass"),
    "numbers": LOOP.replace("AFTER", "total += loss.item(); losses.append(float(loss))"),
    "detached": LOOP.replace("AFTER", "total += loss.detach(); stats['loss'] += loss.data"),
    "the best one": LOOP.replace("AFTER", "best = loss if loss < best else best"),
    "the last three": LOOP.replace("AFTER", "losses = [*losses[-2:], loss]"),
    "outputs without graph": LOOP.replace("AFTER", "losses.append(model(x[rows]).argmax(1))"),
    "several passes a step": """
        for rows in torch.arange(512).remainder(256).split(16):
            parts = [F.cross_entropy(model(x[r]), y[r]) for r in rows.split(4)]
            opt.zero_grad()
            for part in parts:
                (part / 4).backward()
            opt.step()
    """,
    "two losses in turns": """
        for rows in torch.arange(512).remainder(256).split(16):
            for kind in (F.cross_entropy, F.multi_margin_loss):
                loss = kind(model(x[rows]), y[rows])
                opt.zero_grad(); loss.backward(); opt.step()
    """,
    "a closure": """
        opt = torch.optim.LBFGS(model.parameters(), max_iter=4)
        for _ in range(12):
            def closure():
                global loss
                opt.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss
            opt.step(closure)
    """,
    "a state that is cut off": """
        cell, state = nn.GRUCell(8, 3), torch.zeros(16, 3)
        opt = torch.optim.SGD(cell.parameters(), lr=0.1)
        for rows in torch.arange(512).remainder(256).split(16):
            state = cell(x[rows], state.detach())
            loss = F.cross_entropy(state, y[rows])
            opt.zero_grad(); loss.backward(); opt.step()
    """,
    "log probabilities of an episode": """
        for episode in range(20):
            kept = [model(x[i]).log_softmax(0)[y[i]] for i in range(12)]
            opt.zero_grad(); (-torch.stack(kept).mean()).backward(); opt.step()
    """,
    "a penalty on gradients": """
        for rows in torch.arange(512).remainder(256).split(16):
            inputs = x[rows].clone().requires_grad_()
            loss = F.cross_entropy(model(inputs), y[rows])
            slope = torch.autograd.grad(loss, inputs, create_graph=True)[0]
            opt.zero_grad(); (loss + slope.square().mean()).backward(); opt.step()
    """,
}


def seen(text: str) -> LoopRetained:
    Path("train.py").write_text(HEAD + text.replace("BEFORE", "pass"))
    spec = ScriptSpec("train.py", quiet=True)
    with captured(spec) as run:
        assert run.error is None, run.error
        (training,) = trainings_of(run, spec)
    assert training.loop.retained is not None
    return training.loop.retained


@pytest.mark.parametrize(("text", "name", "added"), KEEPERS.values(), ids=KEEPERS)
def test_what_keeps_graphs(text: str, name: str, added: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = seen(text)
    assert found.steps >= 14 and found.window >= 14 and 1000 < found.bytes < 20_000
    assert found.name == name
    if added is not None:
        assert found.site is not None
        line = Path("train.py").read_text().splitlines()[found.site.line - 1]
        assert line[found.site.column - 1 : found.site.end_column - 1] == added


@pytest.mark.parametrize("text", HEALTHY.values(), ids=HEALTHY)
def test_loops_that_keep_none(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import textwrap

    monkeypatch.chdir(tmp_path)
    assert seen(textwrap.dedent(text)).steps == 0


def test_two_trainings_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    again = "model, opt = nn.Linear(8, 3), None\nopt = torch.optim.Adam(model.parameters())\n"
    Path("train.py").write_text(HEAD + HEALTHY["nothing kept"].replace("BEFORE", "pass") + again + "for i in range(3): step(i)\n")
    spec = ScriptSpec("train.py", quiet=True)
    with captured(spec) as run:
        assert [t.name for t in trainings_of(run, spec)] == ["train.py (opt)", "train.py (opt 2)"]
