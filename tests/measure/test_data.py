"""Moments of the features of the inputs, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gradcheck.measure.data import data_facts


def moments(batches):
    (found,) = data_facts(batches, given=True, steps=10, targets=(), classes=None, ignore_index=-100, first="linear").inputs
    return found.moments


@pytest.mark.parametrize("shape", [(16, 5), (16, 3, 4, 4), (16, 2, 3, 4, 4)])
def test_moments_of_features_and_channels_over_all_batches(shape):
    batches = [torch.randn(shape) * 3 + 1 for _ in range(2)]
    batches[0].view(-1)[0] = torch.nan  # not counted
    whole = np.moveaxis(torch.cat(batches).double().numpy(), 1, -1).reshape(-1, shape[1])
    assert np.allclose(moments(batches), np.stack([np.nanmean(whole, 0), np.nanstd(whole, 0)], 1))


@pytest.mark.parametrize(
    "batches",
    [[torch.randn(4, 65)], [torch.randn(4, 7, 3)], [torch.randn(4, 3), torch.randn(4, 2)], [torch.full((4, 2), torch.nan)]],
    ids=["many", "a sequence", "of different widths", "nothing finite"],
)
def test_moments_that_are_not_kept(batches):
    assert moments(batches) == ()
