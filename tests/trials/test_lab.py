"""Runs of a trial: fresh weights by seed where there are any, losses in comparable units, early stopping judged fairly."""

from __future__ import annotations

import math
import random
import time
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.loading.objects import from_objects
from gradcheck.training.pool import WorkerPool
from gradcheck.training.result import stopped_early
from gradcheck.training.splits import splitter_of
from gradcheck.trials.lab import Job, TrialLab, answers, zeros
from gradcheck.trials.standings import Candidate
from gradcheck.trials.yardstick import target_line
from gradcheck.types.fix import Fix
from gradcheck.workload.treated import treated_copy
from tests.trials.problems import diverging, sparse_linear


def fix(name, stage="regularization", **settings):
    return Fix(name, name, stage, "safe", settings)


def lab(problem):
    workload = problem.workload()
    found = TrialLab(workload, splitter_of(workload))
    found.tell_task()
    return found


def test_seeds_start_from_fresh_weights_where_the_target_can_be_built_anew():
    w = sparse_linear().workload()
    w = replace(w, rebuild=lambda seed: sparse_linear(seed).workload())
    found = TrialLab(w, splitter_of(w))
    assert not torch.equal(found.base(0).model.weight, found.base(1).model.weight)
    assert torch.equal(found.base(0).workload.batches[0][0], found.base(1).workload.batches[0][0])  # the data stay those of the target


def test_penalties_are_not_part_of_the_loss_that_is_compared():
    """A loss with a penalty of 5 written into it, as label smoothing and the like change it: judged by the untreated loss."""
    found = lab(sparse_linear())
    treated = found.base(0).copy()
    treated.replace_loss(lambda output, target: F.mse_loss(output, target) + 5.0)
    x, y = treated.workload.val_batches[0]
    judged = found.judge(0, treated)(treated.model, (x, y))
    assert judged.item() == pytest.approx(F.mse_loss(treated.model(x), y).item())


def test_scaled_targets_are_judged_in_their_own_units():
    found = lab(sparse_linear())
    treated = found.base(0).copy()
    treated.transform(lambda batch: (batch[0], (batch[1] - 3.0) / 7.0))
    x, y = found.base(0).workload.val_batches[0]
    scaled = treated.workload.val_batches[0]
    judged = found.judge(0, treated)(treated.model, scaled)
    assert judged.item() == pytest.approx(F.mse_loss(treated.model(x) * 7.0 + 3.0, y).item(), rel=1e-4)


def test_a_line_is_told_column_by_column_and_only_where_there_is_one():
    y = torch.randn(30, 2)
    slope, offset = target_line([(y, y)], [(y, (y - torch.tensor([1.0, 2.0])) / torch.tensor([3.0, 4.0]))], nn.Linear(2, 2))
    assert slope.tolist() == pytest.approx([3.0, 4.0], rel=1e-4) and offset.tolist() == pytest.approx([1.0, 2.0], rel=1e-4)
    assert target_line([(y, y)], [(y, y)], nn.Linear(2, 2)) is None
    assert target_line([(y, y)], [(y, y**2)], nn.Linear(2, 2)) is None


def test_divergence_and_a_step_that_raises_are_results():
    lost = lab(diverging()).run(0, (), 60)
    assert lost.failed and lost.value == math.inf and lost.run.ended == "non-finite"
    broken = sparse_linear().workload()
    broken.training_step = lambda model, batch: 1 / 0
    result = TrialLab(broken, splitter_of(broken)).run(0, (), 5)
    assert result.failed and "division by zero" in result.run.error


def test_early_stopping_is_chosen_on_one_half_and_judged_on_the_other():
    batches = [torch.zeros(4, 1)] * 2
    # The first batch is best served at the second look, the other one at the third.
    checkpoints = [(5.0, 6.0), (1.0, 4.0), (3.0, 2.0), (9.0, 9.0)]
    assert stopped_early(checkpoints, batches) == (3.0, 4.0)


def test_early_stopping_gains_nothing_from_noise():
    """Losses that are noise: the lowest is far below the mean, what early stopping is credited with is not."""
    dice = random.Random(0)
    batches, gains, lowest = [torch.zeros(4, 1)] * 8, [], []
    for _ in range(300):
        checkpoints = [tuple(1 + dice.gauss(0, 0.1) for _ in batches) for _ in range(20)]
        gains.append(sum(stopped_early(checkpoints, batches)) / 8 - 1)
        lowest.append(min(sum(c) / 8 for c in checkpoints) - 1)
    assert abs(sum(gains) / 300) < 0.005 and sum(lowest) / 300 < -0.05


def test_zeros_are_counted_in_weights_only():
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[0].bias.zero_()
    treated = treated_copy(from_objects(model, [(torch.randn(4, 4), torch.randn(4, 2))], loss=F.mse_loss))
    assert zeros(treated) == 0.5


def test_jobs_of_several_processes_have_the_answers_of_one():
    found = lab(sparse_linear())
    jobs = [Job(seed, p, 15, math.inf) for seed in (0, 1) for p in ((), (fix("no-such-remedy"),))]
    alone = dict(answers(WorkerPool(found, 1), jobs))
    pool = WorkerPool(found, 2)
    try:
        shared = dict(answers(pool, jobs))
    finally:
        pool.terminate()
    assert shared[0].result.value == pytest.approx(alone[0].result.value, rel=1e-5)
    assert shared[0].result.value != shared[2].result.value
    assert shared[1].inapplicable and alone[1].inapplicable and shared[1].failure == alone[1].failure


def test_jobs_after_the_deadline_are_not_begun():
    """Time that is up is neither a result nor a failure, and costs nothing: a queue of them ends at once."""
    found = lab(sparse_linear())
    base = Candidate("untreated", "untreated")
    ((_, answer),) = answers(WorkerPool(found, 1), [Job(0, (), 15, time.perf_counter() - 1)])
    assert not answer.begun and not base.note(0, answer)
    assert not base.failure and not base.results


def test_a_step_that_outlasts_the_deadline_does_not_hold_up_the_trial(wall_clock):
    slow = sparse_linear().workload()
    slow.training_step = lambda model, batch: (time.sleep(600), model(batch[0]).mean())[1]
    pool = WorkerPool(TrialLab(slow, splitter_of(slow)), 2)
    started = time.perf_counter()
    assert list(answers(pool, [Job(seed, (), 5, started + 1) for seed in (0, 1)])) == []
    assert time.perf_counter() - started < 300 and pool.executor is None
