"""Samples that a loop trains on, and those that it looks at."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from gradcheck.capture.script import captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import trainings_of
from gradcheck.rules.data.validation_leak import validation_leak
from tests.literals import measurement
from tests.rules.verdicts import findings, no_verdict

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Subset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler, random_split

torch.manual_seed(0)
x, y = torch.randn(400, 8), torch.randint(3, (400,))
data = TensorDataset(x, y)
model = nn.Linear(8, 3)
opt = torch.optim.SGD(model.parameters(), lr=0.1)
def look(loader):
    model.eval()
    with torch.no_grad():
        total = sum(F.cross_entropy(model(a.float()), b).item() for a, b in loader)
    model.train()
    return total
"""
LOOP = """
train = DataLoader(TRAINED, batch_size=16, shuffle=True)
for epoch in range(2):
    for a, b in train:
        loss = F.cross_entropy(model(a.float()), b)
        opt.zero_grad(); loss.backward(); opt.step()
    LOOK
"""


def case(trained: str, *looked_at: str, before: str = "") -> str:
    looks = "; ".join(f"look(DataLoader({name}, batch_size=50))" for name in looked_at)
    return textwrap.dedent(before) + LOOP.replace("TRAINED", trained).replace("LOOK", looks)


NARROW = "model.weight.data = model.weight.data[:, :{}]\n"
SAMPLERS = "rows = torch.randperm(400).tolist()\n" + LOOP.replace(
    "TRAINED, batch_size=16, shuffle=True", "data, batch_size=16, sampler=SubsetRandomSampler({})"
).replace("LOOK", "look(DataLoader(data, batch_size=50, sampler=SubsetRandomSampler({})))")
SPLIT = "one, other = random_split(data, [300, 100])"
OFTEN = "data = Subset(data, torch.multinomial(torch.arange(400.0), 400, replacement=True).tolist())\n"
GRAPHS = """
data = [torch.eye(8)[torch.randint(7, (3 + i % 5,))] for i in range(400)]
def joined(graphs): return torch.cat(graphs), torch.zeros(sum(map(len, graphs))).long()
loader = DataLoader
def DataLoader(*args, **how): return loader(*args, **{**how, "collate_fn": joined})
"""
CASES = {
    "a random split": (case("one", "other", before=SPLIT), []),
    "a test set from elsewhere": (case("data", "TensorDataset(torch.randn(100, 8), torch.randint(3, (100,)))"), []),
    "halves of a tensor": (case("TensorDataset(x[:300], y[:300])", "TensorDataset(x[300:], y[300:])"), []),
    "the training set as well": (case("one", "Subset(one, range(100))", "other", before=SPLIT), []),
    "the training set alone": (case("data", "data"), None),
    "a copy of the training set alone": (case("data", "TensorDataset(x, y)"), ["warning"]),
    "bits": (
        case(
            "one",
            "other",
            before=NARROW.format(4) + "data = TensorDataset(torch.randint(2, (400, 4)), torch.zeros(400).long())\n" + SPLIT,
        ),
        [],
    ),
    "small integers": (
        case(
            "one",
            "other",
            before=NARROW.format(4) + "x = torch.randint(3, (400, 4)); data = TensorDataset(x, x.sum(1) % 3)\n" + SPLIT,
        ),
        [],
    ),
    "single numbers": (
        case("one", "other", before="data = TensorDataset(torch.randint(9, (400, 1)), y)\n" + NARROW.format(1) + SPLIT),
        None,
    ),
    "oversampled within the training part": (case("ConcatDataset([one, Subset(one, range(50))])", "other", before=SPLIT), []),
    "validation before training": (case("one", before=SPLIT + "\nlook(DataLoader(other, batch_size=50))"), []),
    "folds, each with a model of its own": (
        "for fold in range(4):\n"
        "    model = nn.Linear(8, 3)\n    opt = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "    own = torch.arange(400) % 4 == fold\n"
        + textwrap.indent(case("TensorDataset(x[~own], y[~own])", "TensorDataset(x[own], y[own])").strip(), "    "),
        [],
    ),
    "folds of one model": (
        "for fold in range(4):\n    own = torch.arange(400) % 4 == fold\n"
        + textwrap.indent(case("TensorDataset(x[~own], y[~own])", "TensorDataset(x[own], y[own])").strip(), "    "),
        ["warning"],
    ),
    "another model on everything afterwards": (
        case("one", "other", before=SPLIT)
        + "model = nn.Linear(8, 3)\nopt = torch.optim.SGD(model.parameters(), lr=0.1)"
        + LOOP.replace("TRAINED", "data").replace("LOOK", "pass"),
        [],
    ),
    "nodes of graphs": (
        case("one", "other", before=GRAPHS + SPLIT),
        None,
    ),
    "samplers of one data set": (SAMPLERS.format("rows[:300]", "rows[300:]"), []),
    "samplers that overlap": (SAMPLERS.format("rows[:350]", "rows[250:]"), ["error"]),
    "two that repeat": (case("TensorDataset(x[:302], y[:302])", "TensorDataset(x[300:], y[300:])"), []),
    "three in a hundred": (case("TensorDataset(x[:306], y[:306])", "TensorDataset(x[300:], y[300:])"), ["warning"]),
    "an overlap": (case("TensorDataset(x[:350], y[:350])", "TensorDataset(x[250:], y[250:])"), ["error"]),
    "trained on the whole": (case("data", "other", before=SPLIT), ["warning"]),
    "a part of the training set alone": (case("data", "Subset(data, range(100))"), ["warning"]),
    "a split that is redrawn": (case("one", "random_split(data, [300, 100])[1]", before=SPLIT), ["error"]),
    "oversampled before the split": (
        case("one", "other", before="data = ConcatDataset([data, data])\none, other = random_split(data, [600, 200])"),
        ["warning"],
    ),
    "some drawn often, before the split": (case("one", "other", before=OFTEN + SPLIT), ["error"]),
    "bits that are drawn often": (
        case("one", "other", before=NARROW.format(4) + "data = TensorDataset(torch.randint(2, (400, 4)), y // 3)\n" + OFTEN + SPLIT),
        [],
    ),
}


@pytest.mark.parametrize(("text", "expected"), CASES.values(), ids=CASES)
def test_what_is_trained_on_and_looked_at(text: str, expected: list[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.py").write_text(HEAD + text)
    spec = ScriptSpec("train.py", quiet=True)
    with captured(spec) as run:
        assert run.error is None, run.error
        training = trainings_of(run, spec)[0]
    m = measurement(loop=training.loop)
    if expected is None:
        assert no_verdict(validation_leak, m) == "not-applicable"
        return
    found = findings(validation_leak, m)
    assert [f.severity for f in found] == expected
    if found:
        assert found[0].location is not None
        assert "look(" in Path("train.py").read_text().splitlines()[found[0].location.line - 1] or found[0].location.scope == "look"
