"""Terms of a loss that the loop cuts off before they are added: by `item()`, or with derivatives that have no graph."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.capture.script import captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import trainings_of

LOOP = """
import torch
from torch import nn
from torch.nn import functional as F
torch.manual_seed(0)
body, head = nn.Sequential(nn.Linear(6, 16), nn.Tanh()), nn.Linear(16, 3)
opt = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.05)
mean, kept = 1.0, []
for step in range(12):
    u, v = torch.randn(16, 6, requires_grad=True), torch.randint(3, (16,))
    h = body(u)
    out, aux = head(h), h.square().mean()
    ce = F.cross_entropy(out, v)
    TERM
    opt.zero_grad(); loss.backward(); opt.step()
"""
SLOPE = "g = torch.autograd.grad(out.sum(), u, {}=True)[0]; loss = ce + ((g.norm(dim=1) - 1) ** 2).mean()"
CUT = {
    "item": "loss = ce + 0.3 * aux.item()",
    "float": "loss = 0.5 * ce - float(aux)",
    "tensor": "loss = ce + torch.tensor(1 - aux.item())",
    "detach and item": "loss = ce + aux.detach().item()",
    "penalty": SLOPE.format("retain_graph"),
}
WHOLE = {
    "penalty": SLOPE.format("create_graph"),
    "log": "loss = ce + 0.3 * aux; kept.append(ce.item() + aux.item())",
    "normalised": "loss = ce / ce.item() + aux / aux.item()",
    "weight": "weight = ce.item() / aux.item(); loss = ce + weight * aux",
    "running": "mean = 0.9 * mean + 0.1 * ce.item(); loss = ce / mean + aux",
    "shift": "loss = ce + (aux - aux.item())",
    "target": "loss = ce + (out.mean() - aux.item()) ** 2",
    "largest": "z = out - out.max().item(); loss = z.exp().sum(1).log().mean() - z.gather(1, v[:, None]).mean()",
    "attack": "g = torch.autograd.grad(ce, u, retain_graph=True)[0]; loss = ce + F.cross_entropy(head(body((u + g.sign()).detach())), v)",
    "balance": "g = torch.autograd.grad(ce, head.weight, retain_graph=True)[0]; loss = ce + g.norm() * aux",
}


def cut_off(term: str) -> list[tuple[str, int]]:
    Path("train.py").write_text(LOOP.replace("TERM", term))
    spec = ScriptSpec("train.py", quiet=True)
    with captured(spec) as run:
        assert run.error is None, run.error
        (training,) = trainings_of(run, spec)
    return [(t.operation, t.site.line) for t in training.loop.silent or () if t.kind == "cut" and t.site is not None]


@pytest.mark.parametrize("name", CUT)
def test_what_cuts_a_term_off(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cut_off(CUT[name]) == [("torch.autograd.grad" if name == "penalty" else "item", 14)]


@pytest.mark.parametrize("name", WHOLE)
def test_numbers_that_are_no_terms(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cut_off(WHOLE[name]) == []
