"""What findings cost, measured on small trainings."""

from __future__ import annotations

import torch
from torch import nn

import gradcheck
from gradcheck.config.settings import Settings
from gradcheck.judge.judge import judge_again
from gradcheck.types.report import Report

FEATURES, CLASSES, VOCABULARY = 32, 10, 4


def clusters(count=8):
    g = torch.Generator().manual_seed(0)
    means = torch.randn(CLASSES, FEATURES, generator=g)
    labels = [torch.randint(CLASSES, (32,), generator=g) for _ in range(count)]
    return [(means[y] + torch.randn(32, FEATURES, generator=g), y) for y in labels]


def perceptron(*between):
    layers = [nn.Linear(FEATURES, 64), nn.ReLU(), *between, nn.Linear(64, 64), nn.ReLU(), *between]
    return nn.Sequential(*layers, nn.Linear(64, CLASSES))


def scan(model, batches, optimizer, **config):
    return gradcheck.scan(model, batches, loss=nn.CrossEntropyLoss(), optimizer=optimizer, config=config)


def worst(report):
    return {f.code: f.severity for f in reversed(report.findings)}


class First(nn.Module):
    """Says which token came first."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(VOCABULARY, 16), nn.LSTM(16, 32, batch_first=True), nn.Linear(32, VOCABULARY)

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0][:, -1])


def recall(length=24):
    g = torch.Generator().manual_seed(0)
    return [(x, x[:, 0]) for x in torch.randint(VOCABULARY, (12, 32, length), generator=g)]


def test_a_fading_recurrence_that_learns_a_little_is_a_warning_with_its_cost(tmp_path):
    torch.manual_seed(0)
    model = First()
    before = [p.clone() for p in model.parameters()]
    report = scan(model, recall(), torch.optim.Adam(model.parameters(), 5e-3), steps=80)
    f = next(f for f in report.findings if f.code == "GRAD003")
    assert f.severity == "warning" and "; costs: " in f.message and "after 240 steps (with " in f.message
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    report.to_json(tmp_path / "run.json")
    again = judge_again(Report.load(tmp_path / "run.json"), Settings())
    assert [(f.code, f.severity, f.message) for f in again.findings] == [(f.code, f.severity, f.message) for f in report.findings]


def test_what_costs_nothing_is_told_as_a_note_or_not_at_all():
    torch.manual_seed(0)
    model = perceptron()
    report = scan(model, clusters(), torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1.0), steps=50)  # 333 steps
    assert "REG001" not in worst(report) and [c.change for c in report.measurement.costs] == [""]


def test_a_training_that_is_fine_is_not_trained_again():
    torch.manual_seed(0)
    model = perceptron()
    report = scan(model, clusters(), torch.optim.Adam(model.parameters(), 1e-3))
    assert report.measurement.costs == () and "costs" not in report.measurement.seconds
    slow = perceptron()  # nothing was found that a pair could be made of
    report = scan(slow, clusters(), torch.optim.Adam(slow.parameters(), 2e-4))
    assert report.measurement.costs == ()


def test_without_time_or_with_fast_nothing_is_compared():
    torch.manual_seed(0)
    model = First()
    assert scan(model, recall(), torch.optim.Adam(model.parameters(), 3e-3), fast=True).measurement.costs == ()


def test_decay_that_lets_no_weight_grow_is_a_warning_with_each_seed():
    torch.manual_seed(0)
    model = perceptron()
    report = scan(model, clusters(), torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=30.0), seeds=2, steps=40)
    f = next(f for f in report.findings if f.code == "REG001")
    assert f.severity == "warning" and "each at most" in f.message and "costs: held-out loss" in f.message
    assert all(m.costs for m in report.measurements)


def test_momentum_that_remembers_too_long_is_found_beyond_the_probe():
    torch.manual_seed(0)
    model = perceptron()
    report = scan(model, clusters(), torch.optim.SGD(model.parameters(), 0.01, momentum=0.999), steps=60)
    assert worst(report).get("OPT008") == "warning"


def loud(batches):
    return [(300 * x, y) for x, y in batches]


def test_beside_an_error_its_cause_is_looked_for():
    torch.manual_seed(0)
    model = perceptron()
    report = scan(model, loud(clusters()), torch.optim.SGD(model.parameters(), 0.1), steps=50)
    first = report.findings[0]
    assert (first.code, first.severity, first.cause) == ("DATA001", "error", None)
    assert {f.cause for f in report.findings if f.severity == "error"} == {None, "DATA001"}
    assert report.measurement.costs[0].errors


def test_an_error_that_nothing_else_explains_is_not_followed_up():
    torch.manual_seed(0)
    model = nn.Sequential(*perceptron(), nn.Softmax(1))
    report = scan(model, loud(clusters()), torch.optim.SGD(model.parameters(), 0.1), steps=50)
    assert worst(report)["LOSS001"] == "error" and worst(report)["DATA001"] == "warning" and report.measurement.costs == ()
