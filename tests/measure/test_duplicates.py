"""Repeated columns and samples, against pairwise comparison."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradcheck.measure.data import data_facts, features, samples


def table(rows: int = 40, columns: int = 6) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def slow_features(x: torch.Tensor) -> int:
    """Columns that correlate perfectly with one before them, and differ from their median in 8 rows or more."""
    kept: list[np.ndarray] = []
    count = 0
    for column in x.T.numpy():
        if (column != torch.from_numpy(column).median().item()).sum() < 8:
            continue
        same = [k for k in kept if abs(np.corrcoef(k, column)[0, 1]) > 1 - 1e-10]
        count += bool(same)
        kept.append(column)
    return count


@pytest.mark.parametrize(
    "extra",
    [
        lambda x: x[:, :0],
        lambda x: x[:, :1],
        lambda x: 100 * x[:, :2] - 3,
        lambda x: -x[:, 1:2],
        lambda x: x[:, :1] + 0.01 * x[:, 1:2],
        lambda x: torch.zeros(len(x), 2),
        lambda x: torch.cat((x[:, :1], x[:, :1], 2 * x[:, :1]), 1),
        lambda x: (torch.arange(len(x)) == 3)[:, None].double().repeat(1, 2),
        lambda x: (x[:, :1] > 0).double().repeat(1, 2),
    ],
)
def test_repeated_columns(extra):
    x = table()
    x = torch.cat((x, extra(x)), 1)
    assert features(x) == slow_features(x)


def test_repeated_samples_and_their_labels():
    x = table()
    x = torch.cat((x, x[:5], x[:2]))
    labels = torch.zeros(len(x), dtype=torch.long)
    labels[40:43] = 1
    expected = sum(any(torch.equal(a, b) for b in x[:i]) for i, a in enumerate(x))
    same, conflicting = samples(x, labels)
    assert same == expected == 7 and conflicting in (3, 4, 5)  # of three equal ones, the order decides which are compared
    assert samples(x, None) == (7, 0) and samples(table(), None) == (0, 0)


def facts(batches, targets=()):
    return data_facts(
        batches, given=True, steps=10, targets=targets, classes=2 if targets else None, ignore_index=-100, first="linear"
    ).inputs


def test_facts_of_an_input_over_all_batches():
    x = table(32, 4).float()
    x = torch.cat((x, x[:, :1] * 5), 1)
    (found,) = facts([x, x.flip(0)])
    assert (found.duplicate_features, found.duplicate_samples, found.samples) == (1, 32, 64)


def test_a_batch_of_several_steps_is_counted_once():
    x, y = table(32, 4).float(), torch.arange(32) % 2
    batches = [(x, y), (x.clone(), y.clone())]
    (found,) = facts(batches, [b[1] for b in batches])
    assert (found.duplicate_samples, found.samples) == (0, 32)


def test_labels_lie_beside_their_samples():
    x, y = table(32, 4).float(), torch.arange(32) % 2
    batches = [(x, y), (x.clone(), 1 - y)]
    (found,) = facts(batches, [b[1] for b in batches])
    assert found.duplicate_samples == found.conflicting_samples == 32


def test_what_is_not_compared():
    x = table(32, 4).float()
    assert [f.samples for f in facts([(x, x)])] == [0, 0]  # a sample is both together
    assert facts([x[:8]])[0].samples == 0
    assert facts([torch.where(x == x[0, 0], torch.nan, x)])[0].samples == 0
    assert facts([torch.zeros(32, 4, dtype=torch.long)])[0].samples == 0
