"""The linear model against the textbook formula, and on data that hold something, or nothing."""

from __future__ import annotations

import pytest
import torch

from gradcheck.measure.checks.context import Unmeasured
from gradcheck.measure.checks.validation import PENALTIES, SHARES, explained, table


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def primal(x: torch.Tensor, y: torch.Tensor) -> float:
    """The same by (X'X + penalty I)^-1 X'Y, a penalty after the other."""
    fit, choose = (int(s * len(x)) for s in SHARES)
    x, y = x - x[:fit].mean(0), y - y[:fit].mean(0)
    size = float(x[:fit].square().sum(1).mean())
    skills = []
    for penalty in PENALTIES:
        w = torch.linalg.inv(x[:fit].T @ x[:fit] + penalty * size * torch.eye(x.shape[1])) @ x[:fit].T @ y[:fit]
        parts = [(x[a:b] @ w, y[a:b]) for a, b in ((fit, choose), (choose, len(x)))]
        skills.append([1 - float((p - t).square().sum() / (t - t.mean(0)).square().sum()) for p, t in parts])
    return max(skills)[1]


@pytest.mark.parametrize("features", [5, 400])
def test_the_dual_form_is_ridge_regression(features):
    x = noise(200, features)
    y = x[:, :3] + 0.5 * noise(200, 3, seed=1)
    assert explained(x, y) == pytest.approx(primal(x, y), rel=1e-6)


def test_it_finds_what_is_there_and_nothing_else():
    x = noise(500, 20)
    y = x @ noise(20, 1, seed=1)
    assert explained(x, y) > 0.99
    assert explained(x, noise(500, 1, seed=2)) < 0.05


def test_equal_samples_count_once():
    x, y = torch.randn(150, 4), torch.randint(3, (150,))
    rows, answers = table([(x, y), (x, y)], [y, y])
    assert rows.shape == (150, 4) and answers.shape == (150, 3)


def test_tokens_are_columns_and_a_label_for_each_makes_each_a_sample():
    x, y = torch.arange(1000).reshape(200, 5) % 7, torch.arange(200) % 2
    whole, _ = table([(x + torch.arange(200)[:, None] % 50, y)], [y])
    assert whole.shape[1] == 5 * 64
    x = torch.randint(8, (40, 5))
    y = torch.randint(3, (40, 5))
    rows, answers = table([(x, y)], [y])
    assert rows.shape == (200, 64) and answers.shape == (200, 3)


def test_few_samples_are_not_judged():
    y = torch.randn(20, 1)
    with pytest.raises(Unmeasured, match="fewer than 100"):
        table([(torch.randn(20, 4), y)], [y])


def test_batches_of_different_lengths_make_no_table():
    batches = [(noise(60, n), torch.arange(60) % 2) for n in (4, 5)]
    with pytest.raises(Unmeasured, match="differ in length"):
        table(batches, [y for _, y in batches])
