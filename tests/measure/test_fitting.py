"""Models whose steps are slow: the clock is a pretended one, which their passes and their optimizer move on."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck
from gradcheck.loading.objects import from_objects
from gradcheck.measure import faithful, fitting
from gradcheck.types.report import Report

VOCABULARY, LENGTH, ROWS = 48, 64, 8
FORWARD, BACKWARD, UPDATE = 0.18, 0.40, 0.20  # seconds: of a sample in GPT-2 small on two cores, of its optimizer


class Clock:
    now = 0.0


class Slow(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        Clock.now += rows * FORWARD
        if x.requires_grad:
            x.register_hook(lambda _: setattr(Clock, "now", Clock.now + rows * BACKWARD))
        return x


class Adam(torch.optim.Adam):
    def step(self, closure=None):
        Clock.now += UPDATE
        return super().step(closure)


@pytest.fixture(autouse=True)
def _slow(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(fitting, "LARGE", 0)
    monkeypatch.setattr(faithful, "LARGE", 0)
    torch.manual_seed(0)


def language() -> nn.Module:
    return nn.Sequential(nn.Embedding(VOCABULARY, 24), Slow(), nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, VOCABULARY))


def sequences() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The next token is one more."""
    starts = torch.randint(VOCABULARY, (32, ROWS, 1))
    tokens = (starts + torch.arange(LENGTH + 1)) % VOCABULARY
    return [(t[:, :-1], t[:, 1:]) for t in tokens]


def next_token(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def scanned(budget: float, rate: float = 1e-2) -> tuple[Report, float]:
    model, before = language(), Clock.now
    optimizer = Adam(model.parameters(), lr=rate)
    report = gradcheck.scan(model, sequences(), loss=next_token, optimizer=optimizer, config={"budget": budget})
    return report, Clock.now - before


def test_a_slow_model_is_judged_in_full_within_its_budget():
    report, took = scanned(60.0)
    assert took <= 1.1 * 60
    assert not report.coverage.in_part and len(report.measurement.probe.losses) > 30
    said = next(a for a in report.measurement.assumptions if a.about == "batches")
    assert "cut from 8 to 1" in said.text and not said.given
    assert report.measurement.data.batch_size == ROWS


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr("tests.measure.test_fitting.FORWARD", 0.5)
    report, took = scanned(30.0)
    assert took <= 1.1 * 30
    assert any("time for measuring had run out" in n.why for n in report.measurement.not_measured)


def test_batches_stay_whole_where_there_is_time():
    report, _ = scanned(600.0)
    assert not any(a.about == "batches" for a in report.measurement.assumptions)


def contrastive(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    z = F.normalize(output.mean(1), dim=1)
    return F.cross_entropy(z @ z.T, torch.arange(len(z)))


@pytest.mark.parametrize("loss", [contrastive, lambda x, t: F.cross_entropy(x.flatten(0, 1), t.flatten(), reduction="sum")])
def test_a_loss_that_is_no_mean_over_samples_keeps_its_batches(loss):
    model = language()
    w = from_objects(model, sequences(), loss=loss, optimizer=Adam(model.parameters()))
    faithful.ensure_faithful(w)
    assert w.forward_seconds > 1 and fitting.fitted(w, 20.0) is w


def test_labels_and_batch_statistics_ask_for_more_samples():
    x, y = torch.randn(128, 24), torch.randint(4, (128,))
    for extra, least in (([], fitting.TERMS), ([nn.BatchNorm1d(24)], fitting.NORMALIZED)):
        model = nn.Sequential(*extra, Slow(), nn.Linear(24, 4))
        w = from_objects(model, [(x, y)], loss="cross_entropy", optimizer=Adam(model.parameters()))
        faithful.ensure_faithful(w)
        assert len(fitting.fitted(w, 20.0).batches[0][0]) >= least


def test_sequences_are_cut_where_one_of_them_is_still_slow(monkeypatch):
    """As with GPT-2 medium on two cores: one sample of a batch takes as long as eight of a smaller model."""
    monkeypatch.setattr("tests.measure.test_fitting.FORWARD", 0.75 / LENGTH)
    monkeypatch.setattr("tests.measure.test_fitting.BACKWARD", 1.6 / LENGTH)
    monkeypatch.setattr(Slow, "forward", per_position)
    report, took = scanned(60.0)
    assert took <= 1.1 * 60
    assert not report.coverage.in_part and len(report.measurement.probe.losses) >= 20 and not report.findings
    said = next(a for a in report.measurement.assumptions if a.about == "batches")
    assert "cut from 8 to 1 of their samples and from 64 to 32 positions" in said.text


def per_position(self: Slow, x: torch.Tensor) -> torch.Tensor:
    many = x.shape[0] * x.shape[1]
    Clock.now += many * FORWARD
    if x.requires_grad:
        x.register_hook(lambda _: setattr(Clock, "now", Clock.now + many * BACKWARD))
    return x


def test_sequences_that_begin_with_padding_or_have_one_label_stay_whole(monkeypatch):
    monkeypatch.setattr(Slow, "forward", per_position)
    x = torch.randint(1, VOCABULARY, (4, LENGTH))
    late = torch.where(torch.arange(LENGTH) < 40, -100, x)
    for target, loss in ((late, next_token), (x[:, 0], lambda o, t: F.cross_entropy(o.mean(1), t)), (x, next_token)):
        model = language()
        w = from_objects(model, [(x, target)], loss=loss, optimizer=Adam(model.parameters()))
        faithful.ensure_faithful(w)
        assert (fitting.fitted(w, 20.0).length is None) == (target is not x)
