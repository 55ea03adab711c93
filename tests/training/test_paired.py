"""Paired training: the same batches and random numbers for every patient, nothing left behind, divergence as a result."""

from __future__ import annotations

import math
import random
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.loading.objects import from_objects
from gradcheck.training.paired import effect, paired_effect, training_loss
from gradcheck.training.trainer import batch_at
from gradcheck.types.training import Run
from gradcheck.workload.treated import TreatedWorkload, treated_copy
from gradcheck.workload.workload import Clipping
from tests.trained import train


def patient(lr=0.1, batches=4, dropout=0.0, val=True) -> TreatedWorkload:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1))
    data = [(x := torch.randn(8, 5), x.sum(1, keepdim=True)) for _ in range(batches)]
    optimizer = torch.optim.SGD(model.parameters(), lr)
    return treated_copy(from_objects(model, data, loss=F.mse_loss, optimizer=optimizer, val_data=data[:1] if val else None))


def test_a_run_is_that_of_a_plain_loop():
    one = patient()
    run = train(one, steps=10, seed=3)
    twin = one.copy()
    expected = []
    for step in range(10):
        x, y = batch_at(twin.workload.batches, 3, step)
        twin.optimizer.zero_grad()
        loss = F.mse_loss(twin.model(x), y)
        loss.backward()
        twin.optimizer.step()
        expected.append(loss.item())
    assert run.losses == pytest.approx(expected, rel=1e-6)
    assert run.ended == "done" and run.batches == 4


def test_seeds_are_paired_and_differ():
    one = patient(dropout=0.5)
    assert train(one, steps=8, seed=1).losses == train(one, steps=8, seed=1).losses
    assert train(one, steps=8, seed=1).losses != train(one, steps=8, seed=2).losses


def test_validating_does_not_change_the_training():
    one = patient(dropout=0.5)
    watched = train(one, steps=8, seed=1, validate_every=2)
    assert watched.losses == train(one, steps=8, seed=1).losses
    assert [step for step, _ in watched.validated] == [0, 2, 4, 6, 8]
    assert watched.validated[-1][1] < watched.validated[0][1]


def test_every_pass_sees_every_batch_once():
    batches = list(range(7))
    for turn in range(3):
        assert sorted(batch_at(batches, 5, 7 * turn + i) for i in range(7)) == batches
    assert [batch_at(batches, 5, i) for i in range(7)] != [batch_at(batches, 6, i) for i in range(7)]


def test_patient_and_random_states_stay_as_they_are():
    one = patient(dropout=0.5)
    before = {k: v.clone() for k, v in one.model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    train(one, steps=5, seed=0, validate_every=1)
    assert all(torch.equal(v, before[k]) for k, v in one.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]


class Called:
    """Of a class, where the copies of a hook see the same: what a closure holds is copied with it."""

    optimizers: list[int] = []  # noqa: RUF012


def test_the_patients_clipping_and_hooks_are_in_force():
    one = patient(lr=5.0)
    assert train(one, steps=60, seed=0).ended == "non-finite"
    one.workload.clip = Clipping("norm", 0.01)
    assert train(one, steps=60, seed=0).ended == "done"
    Called.optimizers = []
    two = patient()
    two.optimizer.register_step_post_hook(lambda optimizer, args, kwargs: Called.optimizers.append(id(optimizer)))
    train(two, steps=3, seed=0)
    assert len(Called.optimizers) == 3 and id(two.optimizer) not in Called.optimizers


def test_a_step_that_raises_ends_the_run_with_its_error():
    one = patient()
    one.workload.training_step = lambda model, batch: 1 / 0
    run = train(one, steps=5, seed=0)
    assert (run.ended, run.error) == ("raised", "ZeroDivisionError: division by zero") and training_loss(run) == math.inf


def test_a_deadline_and_enough_end_a_run():
    assert train(patient(), steps=50, seed=0, deadline=time.perf_counter() - 1).ended == "budget"
    run = train(patient(), steps=50, seed=0, enough=lambda losses: len(losses) == 7)
    assert run.ended == "learned" and len(run.losses) == 7


def test_a_better_learning_rate_is_better_and_the_same_one_is_not():
    base, faster = patient(lr=0.001), patient(lr=0.05)
    runs = [[train(p, steps=40, seed=s) for s in range(4)] for p in (base, faster, base)]
    known = effect(runs[0], runs[1])
    assert known.better and known.high < 0 and known.seeds == 4
    same = effect(runs[0], runs[2])
    assert not same.better and same.difference == 0


def run_of(losses, ended="done", batches=1):
    return Run("", tuple(losses), batches=batches, ended=ended)


def test_divergence_is_a_result():
    lost, fine = run_of([1.0, math.nan], "non-finite"), run_of([1.0] * 10)
    assert effect([lost] * 3, [fine] * 3).better
    assert effect([fine] * 3, [lost] * 3).low == math.inf
    assert effect([lost] * 3, [lost] * 3).difference == 0
    assert not effect([lost, fine, fine], [fine] * 3).better


def test_pairs_are_compared_after_as_many_steps_as_both_took():
    long, short = run_of([3.0] * 10 + [1.0] * 10), run_of([2.0] * 10, "budget")
    assert effect([long] * 2, [short] * 2).difference == -1.0


def test_where_more_is_better_the_sign_turns():
    assert paired_effect([0.5, 0.6, 0.55], [0.8, 0.9, 0.86], metric="accuracy", lower_is_better=False).better
    assert not paired_effect([0.8, 0.9, 0.86], [0.5, 0.6, 0.55], metric="accuracy", lower_is_better=False).better
    with pytest.raises(ValueError, match="are not pairs"):
        paired_effect([], [], metric="accuracy")
