"""Gradients of single samples and the noise scale, against definitions and a Gaussian whose answer is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.measure.checks.sample_gradients import DRAWS, deterministic, gram_of, groups_of, noise_scale, picked, sample_gradients
from gradcheck.types.training import Run
from gradcheck.workload.training_copy import fork
from tests.measure.workloads import classifier, cross_entropy_step, two_clusters, workload

Tensor = torch.Tensor


def context(model: nn.Module | None = None, step: Callable[..., Tensor] = cross_entropy_step, batches: Any = None) -> CheckContext:
    w = workload(model, step=step, batches=batches)
    return CheckContext(w, 0, time.perf_counter() + 1e6, {}, fork(w), Run("probe", (1.0,)), None)


def test_norms_are_those_of_single_samples():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))
    x, y = two_clusters()[0]
    found = sample_gradients(context(model))
    assert found is not None and found.batch == 16
    model.eval()
    expected = []
    for i in picked((x, y), 8):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        expected.append(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5)
    assert found.norms == pytest.approx(expected, rel=1e-4)
    assert found.largest == int(picked((x, y), 8)[expected.index(max(expected))])


def test_the_extreme_samples_are_among_those_looked_at():
    x, y = torch.ones(32, 3), torch.zeros(32, 1)
    x[17], y[23], y[29] = 50.0, 9.0, -8.0
    assert set(picked((x, y), 6).tolist()) == {17, 23, 29, 0, 1, 2}
    assert picked((x[:4], y[:4]), 8).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_means_and_sums_over_samples_can_be_taken_apart(reduction):
    assert sample_gradients(context(step=lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction=reduction))) is not None


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    z = F.normalize(model(batch[0]), dim=1)
    return F.cross_entropy(z @ z.T / 0.1, torch.arange(len(z)).flip(0))


def test_losses_over_pairs_cannot():
    with pytest.raises(Unmeasured, match="neither the mean"):
        sample_gradients(context(step=contrastive))


def test_batches_whose_first_axes_differ_cannot():
    x = torch.randn(5, 16, 6)
    with pytest.raises(Unmeasured, match="first axes"):
        sample_gradients(
            context(step=lambda m, b: F.cross_entropy(m(b[0].mean(0)), b[1]), batches=[(x, torch.zeros(16, dtype=torch.long))])
        )


def test_weights_that_are_not_finite_say_nothing():
    s = context()
    assert sample_gradients(replace(s, probe=Run("probe", (1.0,), ended="non-finite"))) is None


def test_the_trained_copy_is_left_as_it_was():
    s = context(classifier())
    before = {k: v.clone() for k, v in s.trained.model.state_dict().items()}
    modes = [m.training for m in s.trained.model.modules()]
    sample_gradients(s)
    assert all(torch.equal(v, before[k]) for k, v in s.trained.model.state_dict().items())
    assert [m.training for m in s.trained.model.modules()] == modes


def test_deterministic_restores_modes_and_rates():
    model = nn.ModuleList([nn.LSTM(2, 2, 2, dropout=0.3), nn.Dropout(0.1), nn.BatchNorm1d(2).eval()])
    for everything in (True, False):
        with deterministic(model, everything=everything):
            assert model[0].dropout == 0.0 and not model[1].training and model[0].training is not everything
        assert model[0].dropout == 0.3 and model[1].training and model[0].training and not model[2].training


@pytest.mark.parametrize(("count", "size"), [(16, 64), (8, 64), (3, 64), (1, 64)])
def test_groups_share_no_sample(count, size):
    batches = [(torch.arange(size) + i * size,) for i in range(count)]
    groups = groups_of(batches, DRAWS)
    seen = torch.cat([g[0] for g in groups])
    assert len(groups) == DRAWS and len(seen.unique()) == len(seen) and len({len(g[0]) for g in groups}) == 1


def test_small_batches_make_no_groups():
    assert groups_of([(torch.arange(4),)], DRAWS) == []


def test_the_gram_matrix_is_that_of_the_gradients():
    s = context(nn.Linear(6, 2))
    groups = groups_of(s.workload.batches, 4)
    gram, size = gram_of(s.trained, groups)
    rows = []
    for x, y in groups:
        s.trained.model.zero_grad()
        F.cross_entropy(s.trained.model(x), y).backward()
        rows.append(torch.cat([p.grad.flatten() for p in s.trained.model.parameters()]).double())
    expected = torch.stack(rows) @ torch.stack(rows).T
    assert torch.allclose(gram, expected, rtol=1e-5) and size == 4


def gaussian(scale: float, size: int, seed: int) -> tuple[float, float, float] | None:
    """Noise scale of 8 groups whose samples' gradients are a mean of length 1 and 400 dimensions of noise, trace `scale`."""
    g = torch.Generator().manual_seed(seed)
    mean = torch.zeros(400, dtype=torch.double)
    mean[0] = 1.0
    rows = mean + torch.randn(8, 400, generator=g, dtype=torch.double) * (scale / 400 / size) ** 0.5
    return noise_scale(rows @ rows.T, size)


@pytest.mark.parametrize("scale", [10.0, 100.0])
def test_the_noise_scale_of_a_gaussian(scale):
    found = [gaussian(scale, 16, seed) for seed in range(40)]
    assert all(f is not None for f in found)
    middle = sorted(f[0] for f in found if f)[20]
    assert middle == pytest.approx(scale, rel=0.15)
    assert sum(f[1] <= scale <= f[2] for f in found if f) >= 32  # two standard errors


def test_pure_noise_has_no_upper_end():
    found = [gaussian(1e6, 16, seed) for seed in range(20)]
    assert sum(f is None or f[2] == float("inf") for f in found) >= 18
