"""Regularization: what is seen of it, what is left when it is lifted, and the trainings without."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.checks.context import CheckContext
from gradcheck.measure.checks.regularization import regularization
from gradcheck.measure.checks.without_regularization import lift, seen_noise
from gradcheck.training.trainer import Trainer
from gradcheck.workload.training_copy import TrainingCopy, fork, restored
from gradcheck.workload.workload import Workload
from tests.measure.workloads import classifier, cross_entropy_step, two_clusters, workload


def context(w: Workload, steps: int = 40) -> CheckContext:
    training = Trainer(fork(w), w.batches)
    training.train(steps, float("inf"))
    return CheckContext(w, 0, time.perf_counter() + 60, {}, training.copy, training.record("probe"), None)


class Spellings(nn.Module):
    """Dropout in five spellings."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        self.module, self.by_hand = nn.Dropout(0.1), ByHand(0.5)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True)
        self.off = nn.Dropout(0.9).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.module(self.a(x)), p=0.2, training=self.training)
        x = self.by_hand(torch.dropout(self.off(x), 0.3, self.training))[:, None]
        return self.b(self.attention(x, x, x)[0][:, 0])


class ByHand(nn.Module):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (torch.rand_like(x) > self.rate) / (1 - self.rate) if self.training else x


def seen(model: nn.Module, step: Any = cross_entropy_step) -> tuple[dict[str, float], float]:
    copy = fork(workload(model, step=step))
    for name, module in copy.model.named_modules():
        module.training = name != "off"
    dropouts, smoothing = seen_noise(copy, two_clusters()[0], lambda _: None)
    return {d.layer: d.rate for d in dropouts}, smoothing


def test_dropout_is_seen_in_every_spelling_with_the_rate_that_acts():
    torch.manual_seed(0)
    assert seen(Spellings()) == ({"module": 0.1, ":dropout": 0.3, "by_hand": 0.5, "attention": 0.4}, 0.0)


def test_smoothed_labels_are_seen():
    loss = nn.CrossEntropyLoss(label_smoothing=0.25)
    assert seen(classifier(), lambda model, batch: loss(model(batch[0]), batch[1]))[1] == 0.25


def losses(copy: TrainingCopy, batch: Any) -> list[float]:
    """The loss under different random numbers."""
    values = []
    for seed in range(3):
        torch.manual_seed(seed)
        values.append(copy.loss(batch).item())
    return values


def test_lifted_dropout_leaves_no_noise():
    torch.manual_seed(0)
    w = workload(Spellings())
    noisy, quiet = losses(fork(w), w.batches[0]), fork(w)
    lift(quiet, ("dropout",))
    values = losses(quiet, w.batches[0])
    assert len(set(noisy)) == 3 and len(set(values)) == 1
    silent = fork(w)
    silent.model.eval()
    assert values[0] == pytest.approx(float(silent.loss(w.batches[0])), rel=1e-5)


def test_lifted_weight_decay_is_gone_from_every_group():
    model = classifier()
    groups = [{"params": [model[0].weight], "weight_decay": 0.5}, {"params": [model[6].weight], "weight_decay": 0.1}]
    copy = fork(workload(model, torch.optim.SGD(groups, lr=0.1)))
    lift(copy, ("weight decay",))
    assert [g["weight_decay"] for g in copy.optimizer.param_groups] == [0.0, 0.0]


def penalized(model: nn.Module, batch: Any) -> torch.Tensor:
    return cross_entropy_step(model, batch) + 0.3 * sum(p.abs().sum() for p in model.parameters())


@pytest.mark.parametrize("kinds", [("penalty",), ("penalty", "dropout")])
def test_the_step_without_penalty_has_the_value_and_the_gradient_of_the_data(kinds):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    batch = two_clusters()[0]
    with_it, plain = fork(workload(model, step=penalized)), fork(workload(model))
    lift(with_it, kinds)
    found, expected = with_it.loss(batch), plain.loss(batch)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    found.backward()
    expected.backward()
    for mine, other in zip(with_it.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("power", "degree"), [(1, 1.0), (2, 2.0)])
def test_a_penalty_is_told_from_the_loss_of_the_data(power, degree):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        return cross_entropy_step(model, batch) + 3.0 * sum(p.abs().pow(power).sum() for p in model.parameters())

    w = workload(model, torch.optim.SGD(model.parameters(), lr=1e-3), step)
    found = regularization(context(w))
    assert found is not None and found.penalty is not None
    assert found.penalty.value == pytest.approx(3.0 * sum(float(p.abs().pow(power).sum()) for p in model.parameters()), rel=1e-4)
    assert found.penalty.data == pytest.approx(float(cross_entropy_step(model, w.batches[0])), rel=1e-4)
    assert found.penalty.degree == pytest.approx(degree, rel=1e-3)


def test_terms_of_the_output_are_no_penalty():
    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        output = model(batch[0])
        return F.cross_entropy(output, batch[1]) + output.square().mean()

    model = nn.Linear(6, 2)
    assert regularization(context(workload(model, torch.optim.SGD(model.parameters(), lr=0.05), step), 5)) is None


def test_a_training_that_learns_is_not_repeated():
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 2))
    found = regularization(context(workload(model, torch.optim.SGD(model.parameters(), lr=0.1))))
    assert found is not None and [d.rate for d in found.dropouts] == [0.5] and not found.runs


def test_a_training_that_fails_is_repeated_without():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2))
    found = regularization(context(workload(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=2.0))))
    assert found is not None and found.kinds == ("weight decay",) and found.trained_loss == pytest.approx(0.69, abs=0.02)
    assert [r.lifted for r in found.runs] == [("weight decay",)] and found.runs[0].losses[-1] < 0.5


def test_the_trained_copy_is_put_back():
    copy = fork(workload())
    before = {k: v.clone() for k, v in copy.model.state_dict().items()}
    modes = [m.training for m in copy.model.modules()]
    with restored(copy):
        copy.model.train()
        copy.loss(two_clusters()[0]).backward()
        assert not torch.equal(before["1.running_mean"], copy.model.state_dict()["1.running_mean"])
        copy.model.eval()
    assert all(torch.equal(before[k], v) for k, v in copy.model.state_dict().items())
    assert modes == [m.training for m in copy.model.modules()] and all(p.grad is None for p in copy.model.parameters())
