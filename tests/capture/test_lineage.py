"""Inputs and targets that come from two tensors: whether they are trained on in the pairs that they came in."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.capture.script import captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import trainings_of
from gradcheck.types.loop import LoopPairing

HEAD = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
y = torch.randint(3, (400,))
x = torch.randn(3, 8)[y] + 0.5 * torch.randn(400, 8)
model = nn.Linear(8, 3)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
"""
LOOP = """
for step in range(24):
    rows = torch.randint(400, (32,))
    a, b = BATCH
    loss = LOSS
    opt.zero_grad(); loss.backward(); opt.step()
"""
LOADER = """
for a, b in [batch for _ in range(2) for batch in DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)]:
    loss = F.cross_entropy(model(a), b)
    opt.zero_grad(); loss.backward(); opt.step()
"""
CLASSES, NUMBERS = "F.cross_entropy(model(a), b)", "(model(a)[:, 0] - b).square().mean()"


def loop(batch: str = "x[rows], y[rows]", before: str = "", loss: str = CLASSES) -> str:
    return before + LOOP.replace("BATCH", batch).replace("LOSS", loss)


ORDER = "order = torch.randperm(400)\n"
APART = {
    "inputs in another order": (loop(before="x = x[torch.randperm(400)]"), "x[torch.randperm(400)]"),
    "targets in another order": (loop(before="y = y[np.random.permutation(400)]"), "y[np.random.permutation(400)]"),
    "two orders": (loop(before="x, y = x[torch.randperm(400)], y[torch.randperm(400)]"), "randperm"),
    "in each batch": (loop("x[rows], y[torch.randint(400, (32,))]"), "[rows]"),
    "a slice of what was shuffled": (
        loop("x[32 * (step % 12) : 32 * (step % 12) + 32], y[32 * (step % 12) : 32 * (step % 12) + 32]", "x = x[torch.randperm(400)] / 2"),
        "randperm",
    ),
    "numbers": (loop(before="y = (x @ torch.randn(8)); x = x[torch.randperm(400)]", loss=NUMBERS), "randperm"),
    "turned round": (loop(before="x = x.flip(0)"), "flip"),
    "moved by one": (loop(before="y = torch.roll(y, 1)"), "roll"),
    "targets sorted": ("y = y.sort().values" + LOADER, "sort"),
    "before the loader": ("x = x[torch.randperm(400)]" + LOADER, "randperm"),
}
TOGETHER = {
    "as they came": loop(),
    "both in one order": loop(before=ORDER + "x, y = x[order], y[order]"),
    "one order, given in two ways": loop(before=ORDER + "x, y = x.index_select(0, order), y[order.numpy()]"),
    "shuffled by the loader": LOADER,
    "turned round together": loop(before="x, y = x.flip(0), y.flip(0)"),
    "inputs turned in themselves": loop(before="x = x.flip(1).roll(2, 1)"),
    "both in the order of the targets": loop(before="y, order = y.sort(); x = x[order]"),
    "a part": loop(before="x, y = x[:400], y[:400]"),
    "scaled behind a shuffle": loop(before=ORDER + "x, y = (x[order] - 1) / 2, y[order]"),
    "mixed with others": loop(
        "0.9 * x[rows] + 0.1 * x[other], y[rows]",
        loss="0.9 * F.cross_entropy(model(a), b) + 0.1 * F.cross_entropy(model(a), y[other])",
    ).replace("    a, b", "    other = rows[torch.randperm(32)]\n    a, b"),
    "windows of one tensor": """
data, model = torch.randint(3, (400,)), nn.Sequential(nn.Embedding(3, 8), model)
for step in range(24):
    rows = torch.randint(399, (32,))
    loss = F.cross_entropy(model(data[rows]), data[rows + 1])
    opt.zero_grad(); loss.backward(); opt.step()
""",
    "noise from another tensor": loop("x[rows] + torch.randn(400, 8)[torch.randint(400, (32,))], y[rows]"),
}


def seen(text: str) -> LoopPairing | None:
    Path("train.py").write_text(HEAD + text)
    spec = ScriptSpec("train.py", quiet=True)
    with captured(spec) as run:
        assert run.error is None, run.error
        (training,) = trainings_of(run, spec)
    return training.loop.pairing


@pytest.mark.parametrize(("text", "place"), APART.values(), ids=APART)
def test_pairs_that_are_torn_apart(text: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = seen(text)
    assert found is not None and found.trained < 0.1 and found.source > 0.5 and found.samples >= 100
    assert found.site is not None and place in Path("train.py").read_text().splitlines()[found.site.line - 1]


@pytest.mark.parametrize("text", TOGETHER.values(), ids=TOGETHER)
def test_pairs_that_are_kept(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert seen(text) is None


def test_targets_that_say_nothing_anyway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = seen(loop(before="x = torch.randn(400, 8)[torch.randperm(400)]"))
    assert found is not None and found.source < 0.1
