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


def discs(count: int) -> torch.Tensor:
    centre, (down, along) = torch.rand(count, 2, 1, 1) * 16, torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    return ((down - centre[:, 0]) ** 2 + (along - centre[:, 1]) ** 2 < 9).float().unsqueeze(1)


@pytest.mark.parametrize(("axis", "how"), [(None, ""), (-1, "left to right"), (-2, "top to bottom")])
def test_maps_that_are_turned_by_another_draw_than_their_images(axis, how):
    torch.manual_seed(0)
    maps = discs(64)
    images = torch.cat([maps + 0.3 * torch.randn_like(maps), torch.zeros_like(maps)], 1)
    if axis is not None:
        maps[::2] = maps[::2].flip(axis)
    facts = data_facts([(images, maps)], given=True, steps=10, targets=(maps,), classes=None, ignore_index=-100, first="conv", inputs={"0"})
    assert facts.turned is not None
    assert facts.turned.how == how if how else facts.turned.mirrored == 0
    assert bool(how) == (min(facts.turned.mirrored, facts.turned.fitting) > 0.2)


def test_an_input_of_another_rank_under_the_same_name_is_another_input():
    """A step of the values' fit takes states, then returns, where the policy's step took states alone."""
    states, returns = torch.linspace(-1, 1, 60).reshape(20, 3), torch.full((20,), -800.0)
    (found,) = data_facts([(states,), (returns,)], given=True, steps=2, targets=(), classes=None, ignore_index=-100, first="linear").inputs
    assert (found.min, found.max) == (-1, 1)
