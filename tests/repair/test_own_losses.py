"""Losses of an edited script beside those of the script as it is."""

from __future__ import annotations

import math
import random

import pytest

from gradcheck.repair.script_run import Losses, alone, compare


def course(start: float, end: float, *, noise: float = 0.02, seed: int = 0, steps: int = 200) -> Losses:
    draw = random.Random(seed)
    return tuple(end + (start - end) * math.exp(-i / (0.15 * steps)) + draw.gauss(0, noise) for i in range(steps))


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        (course(2.3, 2.3), course(2.3, 0.4), "better"),
        (course(2.3, 0.4), course(2.3, 2.3), "worse"),
        (course(2.3, 0.4), course(2.3, 0.41, seed=1), "same"),  # within 5 % of the fall
        (course(100.5, 100.4), course(100.5, 100.0), "better"),  # an offset of the loss says nothing
        (course(2.3, 2.3), course(2.3, 2.3, seed=1), "same"),  # noise
        (course(-1.0, -5.0), course(-1.0, -9.0), "better"),
        ((*course(2.3, 1.0)[:50], math.nan), course(2.3, 1.0), "better"),
        (course(2.3, 1.0), (*course(2.3, 1.0)[:50], math.inf), "worse"),
        ((math.nan,) * 5, (math.nan,) * 5, "same"),
        ((*course(2.3, 1.0)[:50], math.nan), course(2.3, 1.0)[:30], "unknown"),  # it was not seen where the other one fails
        (course(2.3, 0.4)[:5], course(2.3, 0.4)[:5], "unknown"),
        ((), (), "unknown"),
    ],
)
def test_the_last_quarter_is_compared(before: Losses, after: Losses, kind: str) -> None:
    assert compare(before, after).kind == kind


def test_a_script_that_goes_on_where_the_other_fails_is_better() -> None:
    assert compare((2.3, 2.2), course(2.3, 1.0), ended=True).kind == "better"
    assert compare((2.3, 2.2), (2.3, 2.2, 2.1), ended=True).kind == "unknown"


def test_how_much_of_the_fall_is_kept_and_the_numbers_are_told() -> None:
    found = compare(course(2.0, 0.0, noise=0), course(2.0, 0.5, noise=0))
    assert found.kind == "worse" and found.learns and found.share == pytest.approx(0.75, abs=0.05)
    assert found.text() == "it trains worse: its own loss is 0.505 instead of 0.00667 over the last 50 of 200 steps"


@pytest.mark.parametrize(
    ("after", "kind"),
    [
        (course(2.3, 0.4), "better"),
        (course(2.3, 2.3, steps=300), "same"),
        (course(2.3, 40.0), "worse"),
        ((2.3, math.nan), "worse"),
        (course(2.3, 2.3, steps=10), "unknown"),
        ((), "unknown"),
    ],
)
def test_a_loss_that_measures_something_else_has_to_fall_by_itself(after: Losses, kind: str) -> None:
    assert alone(after).kind == kind
