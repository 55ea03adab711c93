"""What a loss is a sum of, and which of it trains nothing: scripts in which only that differs."""

from __future__ import annotations

import pytest
import torch

from gradcheck.measure.checks import direction
from gradcheck.measure.checks.balance import reduced
from gradcheck.measure.checks.listing import Listing, terms_of
from tests.scripts import DATA, codes, complaints, scan, written

# Each has a loss `x` terms of which train nothing, and one in which they do.
SUPERVISED = (
    DATA.replace("nn.Dropout(0.1), ", "")
    + """
teacher = net().eval()
for epoch in range(8):
    for x, y in loader:
        logits = model(x)
        with torch.no_grad():
            soft, other = teacher(x), teacher(x + 0.1 * torch.randn_like(x))
        loss = F.cross_entropy(logits, y)
        TERM
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""
)
DISTILLED = "loss = 0.5 * loss + 0.5 * 4 * F.kl_div(F.log_softmax(STUDENT / 2, 1), F.softmax(soft / 2, 1), reduction='batchmean')"
PER_SAMPLE = "loss = (F.cross_entropy(logits, y, reduction='none') + 0.01 * SQUARES).mean()"
ERRORS = "loss = loss + 0.5 * (WRONG).mean()"
DECAYED = "teacher.requires_grad_(False); loss = loss + 1e-4 * sum(p.square().sum() for p in NET.parameters())"
RANKED = "loss = loss - F.logsigmoid(logits[:, 0] - logits[:, OTHER]).mean()"
PINN = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(1, 32), nn.ACT(), nn.Linear(32, 32), nn.ACT(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for step in range(100):
    t = torch.rand(64, 1, requires_grad=True)
    u = model(t)
    du = torch.autograd.grad(u.sum(), t, create_graph=True)[0]
    ddu = torch.autograd.grad(du.sum(), t, create_graph=True)[0]
    loss = (ddu + 0.5 * du + 9 * u).pow(2).mean() + (model(torch.zeros(1, 1)) - 1).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.mark.parametrize(
    ("text", "faulty", "healthy", "code", "line"),
    [
        (SUPERVISED, DISTILLED.replace("STUDENT", "other"), DISTILLED.replace("STUDENT", "logits"), "LOSS009", "F.kl_div"),
        (
            SUPERVISED,
            PER_SAMPLE.replace("SQUARES", "logits.detach().square().sum(1)"),
            PER_SAMPLE.replace("SQUARES", "logits.square().sum(1)"),
            "LOSS009",
            "detach()",
        ),
        (
            SUPERVISED,
            ERRORS.replace("WRONG", "(logits.argmax(1) != y).float()"),
            ERRORS.replace("WRONG", "1 - logits.softmax(1)[:, 0]"),
            "LOSS009",
            "argmax",
        ),
        (SUPERVISED, DECAYED.replace("NET", "teacher"), DECAYED.replace("NET", "model"), "LOSS009", "requires_grad_"),
        (SUPERVISED, RANKED.replace("OTHER", "0"), RANKED.replace("OTHER", "1"), "LOSS009", "logsigmoid"),
        (PINN, "ReLU", "Tanh", "LOSS009", "ddu = "),
    ],
    ids=[
        "teacher of itself",
        "detached, by sample",
        "share of errors",
        "decay of the teacher",
        "differences of equals",
        "second derivative",
    ],
)
def test_scripts_in_which_a_part_of_the_loss_trains_nothing(text, faulty, healthy, code, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reports = scan(written(tmp_path, text.replace("TERM", healthy).replace("ACT", healthy)))
    assert code not in codes(reports) and complaints(reports) == []
    path = written(tmp_path, text.replace("TERM", faulty).replace("ACT", faulty))
    finding = next(f for r in scan(path) for f in r.findings if f.code == code)
    assert finding.severity == "warning" and line in path.read_text().splitlines()[finding.location.line - 1]


@pytest.mark.parametrize(
    "term",
    [
        "m = logits.detach().amax(1); loss = (m + (logits - m[:, None]).exp().sum(1).log() - logits[range(len(y)), y]).mean()",
        "other = logits.abs().mean(); loss = loss + (other - loss).detach()",
        "loss = loss + 0.0 * logits.sum().detach() + F.relu(logits.abs().mean() - 1e6)",
        "loss = loss + logits.square().mean().clamp(min=1e6)",
        "loss = loss - 0.1 * torch.distributions.Normal(logits, torch.full((1,), 0.6).expand_as(logits)).entropy().mean()",
    ],
    ids=["stable logarithm", "straight through", "nothing added", "a bound", "a constant of its shape"],
)
def test_detached_values_that_are_meant(term, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not {"LOSS008", "LOSS009"} & codes(scan(written(tmp_path, SUPERVISED.replace("TERM", term))))


RATIOS = {
    "(new - old).exp()": "-torch.min(r * a, r.clamp(0.8, 1.2) * a)",
    "torch.exp(new - old)": "torch.max(-a * r, -a * torch.clamp(r, 0.8, 1.2))",
    "new.exp() / old.exp()": "-torch.minimum(r * a, torch.clip(r, 0.8, 1.2) * a)",
}


@pytest.mark.parametrize(("made", "objective"), RATIOS.items())
def test_a_ratio_of_probabilities_that_leads_the_wrong_way(made, objective):
    """As it is, upside down, and with the sign of the objective flipped."""

    def found(made: str, objective: str) -> str | None:
        new, old, a, listing = torch.randn(8, requires_grad=True), torch.randn(8) * 0.1, torch.randn(8), Listing()
        with listing:
            r = eval(made, {"new": new * 0.1, "old": old, "torch": torch})
            loss = eval(objective, {"r": r, "a": a, "torch": torch}).mean() + 0.1 * new.square().mean()
        term = direction.ratio(listing.of(loss), loss)
        return term.operation if term is not None else None

    assert found(made, objective) is None
    assert found(made.replace("new", "?").replace("old", "new").replace("?", "old"), objective) == "upside-down"
    assert found(made, f"-({objective})") == "objective"


def test_a_loss_is_taken_apart_with_the_factors_of_its_terms():
    a, b, c = (torch.tensor(x, requires_grad=True) for x in (1.0, 2.0, 3.0))
    with Listing() as listing:
        parts = torch.stack([a.exp() / 2, 3 * b.exp()]).sum() - 0.5 * (c.exp() * 4)
    assert {round(call.tensor.log().item()): abs(factor) for call, factor in terms_of(listing.of(parts))} == {1: 0.5, 2: 3.0, 3: 2.0}


VAE = """
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
factors = torch.randn(512, 4) @ torch.randn(4, 32)
encoder, decoder = nn.Linear(32, 16), nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32))
optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
for step in range(120):
    x = factors[torch.randint(512, (64,))]
    mu, logvar = encoder(x).chunk(2, 1)
    decoded = decoder(mu + (0.5 * logvar).exp() * torch.randn_like(mu))
    RECONSTRUCTION
    divergence = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    loss = (reconstruction + divergence) / len(x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
AVERAGED = "reconstruction = F.mse_loss(decoded, x)"


@pytest.mark.parametrize(
    ("reconstruction", "told"),
    [
        (AVERAGED, True),
        ("reconstruction = (decoded - x).pow(2).mean()", True),
        (AVERAGED.replace(")", ", reduction='sum')"), False),
        (AVERAGED + " * x.numel()", False),
    ],
)
def test_a_summed_divergence_beside_a_mean_error(tmp_path, monkeypatch, reconstruction, told):
    monkeypatch.chdir(tmp_path)
    text = VAE.replace("RECONSTRUCTION", reconstruction)
    found = [f for r in scan(written(tmp_path, text)) for f in r.findings if f.code == "LOSS010"]
    assert len(found) == told
    if told:
        assert "torch.sum" in text.splitlines()[found[0].location.line - 1]


@pytest.mark.parametrize(
    "whole", ["(errors * mask + 2 * divergence.sum() * mask).sum() / mask.sum()", "(errors.mean(1) + 2 * divergence.sum()).mean()"]
)
def test_a_sum_over_the_batch_that_is_added_to_each_error_weighs_its_entries(whole):
    torch.manual_seed(0)
    x, net, mask = torch.randn(8, 5), torch.nn.Linear(5, 5), torch.ones(8, 1)
    with Listing() as listing:
        made = net(x)
        names = {"errors": (made - x).square(), "divergence": made.square() - made, "mask": mask.expand(8, 5).contiguous()}
        loss = eval(whole, names)
    call = listing.of(loss)
    assert call is not None
    weights = {bool(t.made_of): t.facts.weight for t in reduced(call, {id(p) for p in net.parameters()})}
    assert weights == pytest.approx({True: 2.0, False: 1 / 40})
