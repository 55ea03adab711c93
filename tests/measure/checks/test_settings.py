"""The first step in function space, epsilon, clipping, and validation, against plain loops."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from torch import nn

from gradcheck.measure.checks.context import CheckContext
from gradcheck.measure.checks.settings import clipping, functional_step, small_epsilon
from gradcheck.measure.checks.validation import validation
from gradcheck.training.trainer import Trainer
from gradcheck.workload.training_copy import fork
from gradcheck.workload.workload import Clipping, Workload
from tests.measure.workloads import cross_entropy_step, two_clusters, workload


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def context(w: Workload, steps: int = 30) -> CheckContext:
    training = Trainer(fork(w), w.batches)
    training.train(steps, float("inf"))
    return CheckContext(w, 0, time.perf_counter() + 60, {}, training.copy, training.record("probe"), None)


def test_the_functional_step_is_how_far_the_first_update_moves_the_output():
    model = net()
    w = workload(model, torch.optim.Adam(model.parameters(), lr=0.05))
    x, y = w.batches[0]
    twin = copy.deepcopy(model)
    before = twin(x).detach()
    nn.functional.cross_entropy(twin(x), y).backward()
    torch.optim.Adam(twin.parameters(), lr=0.05).step()
    moved = (twin(x).detach() - before).double().numpy()
    expected = (moved**2).mean() ** 0.5 / max(before.double().numpy().std(), 0.1)
    assert functional_step(context(w, 1)) == pytest.approx(expected, rel=1e-4)


def test_there_is_none_for_sgd():
    assert functional_step(context(workload(net()), 1)) is None


@pytest.mark.parametrize(("eps", "tried"), [(1e-8, False), (0.1, True)])
def test_the_usual_epsilon_is_tried_against_a_large_one(eps, tried):
    model = net()
    s = context(workload(model, torch.optim.Adam(model.parameters(), lr=0.01, eps=eps)))
    run = small_epsilon(s)
    assert (run is not None) == tried
    if run is not None:
        plain = net()
        training = Trainer(fork(workload(plain, torch.optim.Adam(plain.parameters(), lr=0.01))), s.workload.batches)
        training.train(30, float("inf"))
        assert run.losses == pytest.approx(training.losses)


def clipped(kind: Any, threshold: float) -> Workload:
    model = net()
    w = workload(model, torch.optim.SGD(model.parameters(), lr=0.1))
    w.clip = Clipping(kind, threshold)
    return w


@pytest.mark.parametrize(("kind", "threshold"), [("norm", 0.05), ("value", 0.01)])
def test_every_step_of_the_probe_is_clipped_as_in_the_users_loop(kind, threshold):
    w, model = clipped(kind, threshold), net()
    clip = {"norm": nn.utils.clip_grad_norm_, "value": nn.utils.clip_grad_value_}[kind]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, norms = [], []
    for step in range(30):
        optimizer.zero_grad()
        loss = cross_entropy_step(model, w.batches[step % len(w.batches)])
        loss.backward()
        norms.append(float(sum(p.grad.double().square().sum() for p in model.parameters() if p.grad is not None)) ** 0.5)
        clip(model.parameters(), threshold)
        optimizer.step()
        losses.append(loss.item())
    probe = context(w).probe
    assert probe.losses == pytest.approx(losses, rel=1e-4) and probe.gradient_norms == pytest.approx(norms, rel=1e-3)


def test_the_share_of_clipped_steps_leaves_the_first_20_out():
    s = context(clipped("norm", 0.05))
    late = s.probe.gradient_norms[20:]
    found = clipping(s)
    assert found is not None and found.clipped == sum(n > 0.05 for n in late) / len(late)
    assert clipping(context(workload(net()), 1)) is None


def test_clipping_by_value_is_compared_with_the_whole_gradient():
    w = clipped("value", 0.01)
    s = context(w, 1)
    shares, cosines = [], []
    for copied, batch in ((fork(w), w.batches[0]), (s.trained, w.batches[-1])):
        model = copy.deepcopy(copied.model)
        model.zero_grad()
        cross_entropy_step(model, batch).backward()
        entries = [v for p in model.parameters() if p.grad is not None for v in p.grad.double().reshape(-1).tolist()]
        cut = [min(max(v, -0.01), 0.01) for v in entries]
        shares.append(sum(abs(v) > 0.01 for v in entries) / len(entries))
        product = sum(a * b for a, b in zip(entries, cut, strict=True))
        cosines.append(product / (sum(v * v for v in entries) * sum(v * v for v in cut)) ** 0.5)
    found = clipping(s)
    assert found is not None and found.coordinates == pytest.approx(sum(shares) / 2) and found.cosine == pytest.approx(sum(cosines) / 2)


def evaluated(model: nn.Module, batches: list[Any]) -> float:
    """Mean over all samples, in evaluation mode."""
    model = copy.deepcopy(model).eval()
    values = [float(cross_entropy_step(model, (x[i : i + 1], y[i : i + 1]))) for x, y in batches for i in range(len(x))]
    return sum(values) / len(values)


def test_validation_is_the_loss_of_the_trained_copy_on_both_sides():
    w = workload(net())
    w.val_batches = two_clusters(batches=3)[1:]
    s = context(w)
    found = validation(s)
    assert found is not None and found.samples == 32
    assert found.train_loss == pytest.approx(evaluated(s.trained.model, list(w.batches)), rel=1e-4)
    assert found.loss == pytest.approx(evaluated(s.trained.model, list(w.val_batches)), rel=1e-4)
    assert found.start_loss == pytest.approx(evaluated(w.model, list(w.val_batches)), rel=1e-4)
    assert found.lowest is None
    assert s.trained.model.training


def test_a_gap_is_followed_on_the_way():
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 2))
    w = workload(model, torch.optim.Adam(model.parameters(), lr=0.05))
    w.val_batches = [(x, 1 - y) for x, y in two_clusters()]
    s = context(w)
    found = validation(s)
    assert found is not None and found.lowest is not None and found.lowest < found.loss
    replay = Trainer(fork(w), w.batches)
    replay.train(found.lowest_step or 0, float("inf"))
    assert found.lowest == pytest.approx(evaluated(replay.copy.model, list(w.val_batches)), rel=1e-4)


def test_without_validation_data_there_is_nothing():
    assert validation(context(workload(net()), 1)) is None
