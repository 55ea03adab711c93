"""Which axis embeddings are normalised over, and which one they are compared over."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradcheck

CONTRASTIVE = {
    "rows": lambda a, b, dim: F.normalize(a, dim=dim) @ F.normalize(b, dim=dim).T,
    "one matrix": lambda a, b, dim: (z := F.normalize(torch.cat([a, b]), dim=dim)) @ z.t(),
    "two views of one": lambda a, b, dim: torch.mm((p := F.normalize(torch.cat([a, b]), dim=dim).chunk(2))[0], p[1].T),
    "by hand": lambda a, b, dim: (a / a.norm(dim=dim, keepdim=True)) @ (b / b.norm(dim=dim, keepdim=True)).T,
    "columns": lambda a, b, dim: F.normalize(a, dim=1 - dim).T @ F.normalize(b, dim=1 - dim),
}


def similarities(compare, dim):
    torch.manual_seed(0)
    model = nn.Linear(8, 6)

    def step(model, x):
        return compare(model(x), model(x + 0.1), dim).pow(2).mean()

    with torch.random.fork_rng():
        report = gradcheck.scan(model, torch.randn(16, 8), training_step=step, steps=5)
    return report.measurement.similarities


@pytest.mark.parametrize("name", [n for n in CONTRASTIVE if n != "columns"])
def test_rows_are_compared_that_are_not_normalised(name):
    (found,) = similarities(CONTRASTIVE[name], 0)
    assert found.shape[1] == 6 and found.site is not None
    assert similarities(CONTRASTIVE[name], 1) == ()


@pytest.mark.parametrize("dim", [0, 1])
def test_columns_may_be_compared(dim):
    """Correlations of features over the samples, as Barlow Twins takes them, and covariances of normalised embeddings."""
    assert similarities(CONTRASTIVE["columns"], dim) == ()
