"""Shapes that `view` and `reshape` take and give."""

from __future__ import annotations

import pytest

from gradcheck.instrument.similarities import scrambled


@pytest.mark.parametrize(
    ("before", "after", "axis"),
    [
        ((32, 8, 8, 24), (32, 24, 64), 3),  # [batch, channel, band, frame] read as [batch, frame, features]
        ((32, 12, 20), (32, 20, 12), 1),
        ((32, 24, 5, 2), (32, 5, 48), 2),
        ((32, 20, 12), (32, 240), None),
        ((32, 20, 12), (32, 20, 3, 4), None),  # heads
        ((32, 20, 12), (640, 12), None),
        ((32, 3, 16, 16), (32, 3, 4, 4, 4, 4), None),  # patches
        ((32, 48, 8, 16), (32, 8, 6, 8, 16), None),  # groups of channels
        ((32, 4, 16, 8), (32, 16, 32), None),  # heads joined without moving them: the cuts fit, and future-leak looks
        ((2, 4, 10, 11), (2, 4, 11, 10), None),  # the shift of relative positions
        ((32, 0, 12, 5), (32, 12, 0), None),
    ],
)
def test_an_axis_that_keeps_its_size_only(before, after, axis):
    assert scrambled(before, after) == axis
