"""How much one element weighs in the losses of accumulated passes, and the gradient in which all weigh alike."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from gradcheck.capture.script import captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import trainings_of
from gradcheck.types.loop import LoopFacts

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(12, 16), nn.Linear(16, 12))
opt = torch.optim.SGD(model.parameters(), lr=0.1)
def batch(longest):
    y = torch.randint(12, (2, 40))
    y[:, longest:] = -100
    return torch.randint(12, (2, 40)), y
"""
LOOP = """
for step in range(8):
    opt.zero_grad()
    group = [batch(longest) for longest in LENGTHS]
    count = sum((y != -100).sum() for _, y in group)
    for x, y in group:
        LOSS
    opt.step()
"""
MEAN = "loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / 4; loss.backward()"
SUM = "loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction='sum') / DIVISOR; loss.backward()"
MASKED = (
    "mask = (y != -100).float(); rows = F.cross_entropy(model(x).transpose(1, 2), y.clamp(min=0), reduction='none'); "
    "loss = (rows * mask).sum() / DIVISOR; loss.backward()"
)
VARIED, ALIKE = "(4, 40, 8, 20)", "(20, 20, 20, 20)"
CASES = {  # the loss, lengths, and how much more the tokens of the shortest weigh; None: it cannot be told
    "means": (MEAN, VARIED, 10),
    "masked means": (MASKED.replace("DIVISOR", "mask.sum() / 4"), VARIED, 10),
    "means of what is chosen": (
        "loss = F.cross_entropy(model(x)[y != -100], y[y != -100], reduction='none').mean() / 4; loss.backward()",
        VARIED,
        10,
    ),
    "means of equally long": (MEAN, ALIKE, 1),
    "nearly equally long": (MEAN, "(20, 22, 24, 21)", 1.2),
    "weighed by their tokens": (MEAN.replace("/ 4", "* ((y != -100).sum() / count)"), VARIED, 1),
    "sums over all tokens": (SUM.replace("DIVISOR", "count"), VARIED, 1),
    "sums over sequences": (SUM.replace("DIVISOR", "8"), VARIED, 1),
    "masked sums over all tokens": (MASKED.replace("DIVISOR", "count"), VARIED, 1),
    "class weights": (MEAN.replace("y.flatten())", "y.flatten(), torch.ones(12))"), VARIED, None),
    "one batch a step": (MEAN, "(20,)", None),
}


def seen(text: str) -> LoopFacts:
    Path("train.py").write_text(HEAD + textwrap.dedent(text))
    spec = ScriptSpec("train.py", quiet=True)
    with captured(spec) as run:
        assert run.error is None, run.error
        (training,) = trainings_of(run, spec)
    return training.loop


@pytest.mark.parametrize(("loss", "lengths", "ratio"), CASES.values(), ids=CASES)
def test_the_weight_of_an_element(loss: str, lengths: str, ratio: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = seen(LOOP.replace("LOSS", loss).replace("LENGTHS", lengths)).weighting
    if ratio is None:
        assert found is None
        return
    assert found is not None and found.ratio == pytest.approx(ratio, rel=1e-4) and found.difference is not None
    assert (found.difference > 0.3) if ratio > 5 else (found.difference < 0.2) if ratio > 1 else (found.difference < 1e-4)


def test_the_gradient_of_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against gradients that are computed by themselves, at the same weights."""
    monkeypatch.chdir(tmp_path)
    text = LOOP.replace("LOSS", MEAN).replace("LENGTHS", VARIED).replace("opt.step()", "opt.step() if step < 0 else None")
    check = """
    wanted = F.cross_entropy(torch.cat([model(x) for x, _ in group]).flatten(0, 1), torch.cat([y for _, y in group]).flatten())
    wanted = torch.autograd.grad(wanted, list(model.parameters()))
    given = [p.grad for p in model.parameters()]
    print("DISTANCE", (sum((a - b).square().sum() for a, b in zip(given, wanted)) / sum(b.square().sum() for b in wanted)).sqrt().item())
"""
    text = text.replace("    opt.step() if step < 0 else None\n", check + "    opt.step()\n")
    text = text.replace("lr=0.1", "lr=1e-9")
    Path("own.py").write_text((HEAD + text).replace("lr=0.1", "lr=1e-9"))
    import contextlib
    import io
    import statistics

    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(Path("own.py").read_text(), "own.py", "exec"), {"__name__": "own"})
    own = statistics.median(float(line.split()[1]) for line in out.getvalue().splitlines())
    found = seen(
        LOOP.replace("LOSS", MEAN)
        .replace("LENGTHS", VARIED)
        .replace("    opt.step()", "    opt.param_groups[0]['lr'] = 1e-9\n    opt.step()")
    )
    assert found.weighting is not None and found.weighting.difference == pytest.approx(own, rel=0.05)
