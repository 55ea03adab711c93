"""Losses over the next token that are computed by chunks, by a function that takes the head's weight, or where nobody sees."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.config.settings import settings_from
from gradcheck.loading.objects import from_objects
from gradcheck.pipeline import scan_workload
from gradcheck.rules.sequence.future_leak import future_leak
from gradcheck.rules.sequence.nothing_supervised import nothing_supervised
from gradcheck.types.measurement import Measurement
from tests.rules.verdicts import severities

KINDS, PLACES, WIDTH = 12, 16, 16


class Reader(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(KINDS, WIDTH)
        self.mix = nn.GRU(WIDTH, WIDTH if causal else WIDTH // 2, batch_first=True, bidirectional=not causal)
        self.head = nn.Linear(WIDTH, KINDS, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.mix(self.embed(tokens))[0]


class Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, target):
        with torch.enable_grad():
            h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
            scores = h @ w.T
            counts = target != -100
            loss = ((scores.logsumexp(1) - (scores * F.one_hot(target.clamp(min=0), KINDS)).sum(1)) * counts).sum() / counts.sum().clamp(
                min=1
            )
        ctx.save_for_backward(*torch.autograd.grad(loss, (h, w)))
        return loss.detach()

    @staticmethod
    def backward(ctx, given):
        return given * ctx.saved_tensors[0], given * ctx.saved_tensors[1], None


def places(model, x, y):
    parts = zip(model(x).split(5, 1), y.split(5, 1), strict=True)
    return sum(F.cross_entropy(model.head(h).flatten(0, 1), t.flatten(), reduction="sum") for h, t in parts) / y.numel()


def rows(model, x, y):
    parts = zip(model(x).flatten(0, 1).split(40), y.flatten().split(40), strict=True)
    return sum(F.cross_entropy(model.head(h), t, reduction="sum") for h, t in parts) / y.numel()


def fused(model, x, y):
    return Fused.apply(model(x).flatten(0, 1), model.head.weight, y.flatten())


def of_torch(model, x, y):
    return F.linear_cross_entropy(model(x).flatten(0, 1), model.head.weight, y.flatten())


def by_hand(model, x, y):
    scores = model.head(model(x))
    return (scores.logsumexp(-1) - (scores * F.one_hot(y.clamp(min=0), KINDS)).sum(-1)).mean()


def one_hot(model, x, y):
    return -(F.log_softmax(model.head(model(x)), -1) * torch.eye(KINDS)[y]).sum(-1).mean()


def of_probabilities(model, x, y):
    return F.cross_entropy(model.head(model(x)).transpose(1, 2), torch.eye(KINDS)[y].transpose(1, 2))


def by_index(model, x, y):
    scores = F.log_softmax(model.head(model(x)).flatten(0, 1), -1)
    return -scores[torch.arange(len(scores)), y.flatten()].mean()


def by_products(model, x, y):
    scores = model.head(model(x))
    return (scores.logsumexp(-1) - torch.einsum("btc,btc->bt", scores, F.one_hot(y, KINDS).float())).mean()


def measured(loss, causal: bool = True, supervised: bool = True) -> Measurement:
    torch.manual_seed(0)
    tokens = torch.randint(KINDS, (2, 16, PLACES + 1))
    model = Reader(causal)

    def step(model, batch):
        return loss(model, batch[:, :-1], batch[:, 1:] if supervised else torch.full_like(batch[:, 1:], -100))

    workload = from_objects(model, list(tokens), training_step=step, optimizer=torch.optim.Adam(model.parameters(), 1e-2))
    return scan_workload(workload, settings_from({"select": ["SEQ"], "steps": 3, "seeds": 1})).measurement


LOSSES = [places, rows, fused, by_hand, one_hot, of_probabilities, by_index, *([of_torch] if hasattr(F, "linear_cross_entropy") else [])]


@pytest.mark.parametrize("loss", LOSSES)
def test_a_leak_is_seen_however_the_loss_is_computed(loss) -> None:
    assert severities(future_leak, measured(loss, causal=False)) == ["error"]
    assert severities(future_leak, measured(loss)) == []


@pytest.mark.parametrize("loss", [places, fused])
def test_nothing_supervised_is_seen(loss) -> None:
    assert severities(nothing_supervised, measured(loss, supervised=False)) == ["error"]


def test_what_is_not_seen_is_not_healthy() -> None:
    m = measured(by_products, causal=False)
    assert m.sequence is None and any("not seen" in x.why for x in m.not_measured)
