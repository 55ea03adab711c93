"""Does a run learn? Judged on loss curves whose answer is plain."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from gradcheck.analysis.convergence import (
    PATIENCE,
    comes_down,
    creeps,
    depends_on_order,
    held_up,
    outcome,
    ran_away,
    relapse,
    relative_decrease,
    sooner,
    start_and_end,
    training_outcome,
    unsettled,
)
from gradcheck.types.training import Run
from tests.literals import measurement, stalled


def noisy(start: float, end: float, steps: int = 100, noise: float = 0.02, batches: int = 4, hardness: float = 0.0) -> Run:
    """A loss that moves evenly from start to end; batch i is harder by i times `hardness`."""
    rng = random.Random(0)
    losses = [start + (end - start) * t / (steps - 1) + rng.gauss(0, noise) + hardness * (t % batches) for t in range(steps)]
    return Run("probe", tuple(losses), batches=batches)


def settling(start: float, level: float, pace: float = 10.0, steps: int = 300) -> Run:
    """A loss that falls to a level and stays there."""
    return Run("probe", tuple(level + (start - level) * math.exp(-t / pace) for t in range(steps)))


@pytest.mark.parametrize(
    ("run", "chance", "expected"),
    [
        (noisy(2.3, 1.0), 2.3, "learns"),
        (noisy(2.3, 2.3), 2.3, "stalls"),
        (settling(40.0, 2.3), 2.3, "stalls"),  # down to chance only
        (settling(40.0, 2.3, 1000), 2.3, "unknown"),  # on its way there
        (noisy(40.0, 2.3, noise=0.01), 2.3, "unknown"),  # or beyond
        (noisy(99.0, 80.0, 300), 0.04, "unknown"),  # targets far from zero
        (noisy(99.0, 95.0, 300), 0.04, "stalls"),  # has hardly left its start
        (noisy(2.3, 2.18, 300, noise=0.005), 2.3, "stalls"),  # 5 %: a rate that is too low
        (noisy(2.3, 2.14, 300, noise=0.001), 2.3, "unknown"),  # 7 %, and it goes on
        (settling(2.5, 2.14, 60), 2.3, "stalls"),  # 7 % below chance, and no further
        (noisy(0.004, 0.15, noise=0.0), None, "diverges"),
        (replace(noisy(0.004, 0.15, noise=0.0), surrogate="it weighs"), None, "unknown"),
        (replace(noisy(2.3, 1.0), surrogate="it weighs"), None, "learns"),
        (noisy(-0.01, 0.1), None, "unknown"),  # below zero at first: the level says nothing
        (replace(noisy(0.5, 2e9), surrogate="it weighs"), None, "diverges"),  # beyond all measure
        (replace(noisy(0.5, 300.0), surrogate="it weighs"), None, "unknown"),
        (Run("probe", (0.5, *[1e9] * 10, *[0.495] * 89), batches=32), None, "stalls"),  # thrown up at once, and dead
        (noisy(-0.01, -0.02, noise=0.1), None, "unknown"),  # a fall that is lost in how batches differ
        (noisy(40.0, 2.3, noise=0.01), None, "learns"),  # where chance is not known, a fall is a fall
        (noisy(2.3, 2.2, noise=0.005), 2.3, "learns"),  # small, but far beyond the noise
        (noisy(2.3, 2.2, noise=0.5), 2.3, "stalls"),  # the same, lost in the noise
        (noisy(2.3, 2.29, noise=0.0001), 2.3, "stalls"),  # sure, but nothing
        (replace(noisy(2.3, 2.29, noise=0.0001), floor=2.25), 2.3, "learns"),  # a fifth of the way down to it
        (replace(noisy(2.3, 2.299, noise=0.0001), floor=2.25), 2.3, "stalls"),
        (replace(noisy(2.3, 2.29, noise=0.1), floor=2.25), 2.3, "stalls"),  # lost in the noise
        (noisy(2.3, 8.0), 2.3, "diverges"),
        (noisy(2.3, 2.3, hardness=1.0), None, "stalls"),  # the order of the batches is no progress
        (noisy(-1.0, -9.0), None, "learns"),  # losses below zero
        (noisy(2.3, 2.3, steps=39), 2.3, "unknown"),
        (noisy(2.3, 2.3, steps=40), 2.3, "stalls"),
        (noisy(2.3, 9.0, steps=39), 2.3, "unknown"),
        (Run("probe", (2.3,) * 20 + (900.0,) * 19), 2.3, "diverges"),
        (Run("probe", (2.3, 2.2, math.nan), ended="non-finite"), 2.3, "diverges"),
        (Run("probe", (), ended="raised", error="ValueError: no"), None, "unknown"),
        (Run("probe", (1e30, math.inf, 1e30, 1e30) * 10, batches=2), None, "stalls"),
    ],
)
def test_outcome(run, chance, expected):
    assert outcome(run, chance) == expected


def test_a_run_on_its_own_batches_brings_its_own_chance():
    run = Run("adam on one batch", tuple([2.3] + [2.0] * 50), chance=2.0)
    assert outcome(run) == "stalls"
    assert outcome(Run("adam on one batch", run.losses)) == "learns"


def test_fall_is_relative_to_the_better_of_start_and_chance():
    assert relative_decrease(noisy(4.0, 1.0, noise=0.0, steps=4000), 2.0) == pytest.approx(0.5, abs=0.01)
    assert relative_decrease(noisy(1.0, 0.5, noise=0.0, steps=4000), 2.0) == pytest.approx(0.5, abs=0.01)
    assert relative_decrease(noisy(1.0, 2.0, noise=0.0, steps=4000)) == pytest.approx(-1.0, abs=0.01)


def test_start_and_end_cover_every_batch_equally():
    losses = [10.0, 20.0, 30.0] + [1.0, 2.0, 3.0] * 20
    start, end, error = start_and_end(Run("probe", tuple(losses), batches=3))
    assert (start, end, error) == (20.0, 2.0, 0.0)


@pytest.mark.parametrize(("steps", "expected"), [(PATIENCE - 10, "learns"), (PATIENCE + 10, "stalls")])
def test_a_small_fall_is_learning_as_long_as_little_time_has_passed(steps, expected):
    assert outcome(noisy(2.3, 2.2, noise=0.005, steps=steps), 2.3) == expected


@pytest.mark.parametrize(("batches", "ended", "expected"), [(4, "budget", "unknown"), (4, "done", "stalls"), (1, "budget", "stalls")])
def test_a_plateau_that_the_budget_cut_off_is_no_verdict(batches, ended, expected):
    assert outcome(Run("probe", (2.3,) * 100, batches=batches, ended=ended), 2.3) == expected


def test_a_loss_that_jumps_up_late_is_unsettled():
    early, late = [2.3, 9.0, *[1.0] * 98], [2.3, *[1.0] * 78, 9.0, *[1.0] * 20]
    assert not unsettled(Run("probe", tuple(early)), 2.3)
    assert unsettled(Run("probe", tuple(late)), 2.3)
    assert not unsettled(Run("probe", tuple(late)), 9.0)  # never above what a constant prediction costs


@pytest.mark.parametrize(("end", "expected"), [(2.0, "learns"), (2.25, "stalls")])
def test_a_probe_that_learns_clearly_in_another_order_learns(end, expected):
    again = Run("other order", tuple([2.3] * 50 + [end] * 250), rate_factor=1.0)
    m = measurement(probe=stalled(steps=300), experiments=(again,))
    assert training_outcome(m) == expected and depends_on_order(m) == (expected == "learns")


@pytest.mark.parametrize(("steps", "expected"), [(11, "stalls"), (60, "learns")])
def test_another_order_that_was_cut_off_early_has_seen_some_of_the_batches_only(steps: int, expected: str) -> None:
    again = Run("other order", tuple([0.6] + [0.22] * (steps - 1)), 16, rate_factor=1.0, ended="budget")
    m = measurement(probe=Run("probe", tuple([0.27] * 300), batches=16), chance=0.27, experiments=(again,))
    assert training_outcome(m) == expected


@pytest.mark.parametrize(("steps", "lasts"), [(16, False), (250, True)])
def test_a_dip_in_another_order_is_no_learning_where_the_probe_had_one_as_deep(steps: int, lasts: bool) -> None:
    """Decay that outlasts the gradient: 0.4 after 25 steps, and back at chance (0.66) for good."""
    probe = Run("probe", tuple([0.75 - 0.35 * t / 30 for t in range(30)] + [0.67] * 270))
    again = Run("other order", tuple([0.78 - 0.35 * t / steps for t in range(steps)]), rate_factor=1.0, ended="learned")
    m = measurement(probe=probe, chance=0.66, experiments=(again,))
    assert relapse(m.probe, m.chance) is not None
    assert depends_on_order(m) == lasts and training_outcome(m) == ("learns" if lasts else "stalls")


@pytest.mark.parametrize(
    ("losses", "batches", "chance", "expected"),
    [
        ((9.0, 50.0, *[1500.0] * 7), 9, 8.5, True),  # AdamW at rate 20: nine steps
        ((9.0, 50.0, *[89.0] * 7), 9, 8.5, False),  # few steps must show a rise by ten times
        ((9.0, 50.0, *[899.0] * 7), 9, None, False),  # and by a hundred where chance is not known
        ((9.0, 50.0, *[901.0] * 7), 9, None, True),
        ((9.0, *[300.0] * 8, *[14.0] * 45), 9, 8.5, True),  # the first round of the batches is high already
        ((9.0, *[300.0] * 8, *[13.0] * 45), 9, 8.5, False),
        (tuple([1.0, 3.0, 3.0, 3.0] * 15), 4, None, False),  # the first batch is an easy one
        ((1e-5, *[0.01] * 60), 1, None, False),  # a distance to a copy starts at 0
    ],
)
def test_a_rise_is_told_from_the_first_loss(losses, batches, chance, expected):
    assert ran_away(Run("probe", tuple(losses), batches=batches), chance) is expected


def test_a_run_that_was_cut_off_is_held_up_where_it_has_not_fallen():
    flat = Run("probe", (4.2,) * 30, batches=30, ended="budget")
    assert held_up(flat, 4.2) and not held_up(Run("probe", (4.2,) * 29, batches=29, ended="budget"), 4.2)
    assert not held_up(noisy(4.2, 3.9, steps=30, noise=0.0, batches=30), 4.2)


def test_a_lower_rate_is_compared_over_the_same_steps():
    probe = Run("probe", (4.2,) * 30, batches=30, ended="budget")
    lower = Run("rate x0.01", (4.2, 4.0, 3.9, 3.8, 3.7, 3.6, 3.5, 3.4), batches=30, ended="budget", rate_factor=0.01)
    assert sooner(lower, probe) and not sooner(Run("rate x0.01", lower.losses[:7], batches=30, ended="budget"), probe)
    assert not sooner(Run("rate x0.01", (4.2, *[3.9] * 9), batches=30, ended="budget"), probe)
    m = measurement(probe=probe, chance=4.2)
    assert training_outcome(m) == "unknown" and training_outcome(replace(m, experiments=(lower,))) == "stalls"


@pytest.mark.parametrize(("end", "steps", "expected"), [(80.0, 300, True), (80.0, 200, False), (50.0, 300, False), (98.0, 300, False)])
def test_a_loss_far_above_chance_creeps_where_it_falls_by_little(end, steps, expected):
    assert creeps(noisy(99.0, end, steps), 0.04) is expected


@pytest.mark.parametrize(
    ("level", "lower", "noise", "expected"), [(3.0, 2.5, 0.1, True), (3.0, 2.8, 0.1, False), (2.4, 2.1, 0.1, False), (3.0, 2.5, 2.0, False)]
)
def test_a_run_that_comes_down_from_a_level_above_chance(level, lower, noise, expected):
    probe, run = noisy(level, level, 300, 0.0), noisy(lower, lower, 300, noise)
    assert comes_down(run, probe, 2.3) is expected and not comes_down(run, probe, None)


@pytest.mark.parametrize(("end", "expected"), [(1.1, None), (1.3, (0.2, 50)), (2.3, (0.2, 50))])
def test_a_loss_that_is_half_way_back_has_relapsed(end, expected):
    losses = (*(2.3 - 2.1 * t / 40 for t in range(40)), *(0.2,) * 10, *(end,) * 50)
    assert relapse(Run("probe", losses, batches=4), 2.3) == (expected if expected is None else (pytest.approx(expected[0]), expected[1]))


def test_the_lowest_of_many_noisy_levels_is_no_relapse_of_a_watched_run():
    """Batches that are all new, with a heavy tail: a healthy regression looks so."""
    dice = random.Random(0)
    losses = tuple(3.0 * (0.3 + dice.random() ** 4 * 5) * (1 - i / 600) for i in range(200))
    assert all(relapse(Run("watched", losses[:n], batches=n, live=True), 3.5) is None for n in range(40, 200, 5))
    assert any(relapse(Run("probe", losses[:n], batches=n), 3.5) is not None for n in range(40, 200, 5))
    back = (*(2.0 - i / 60 for i in range(100)), *(0.4 + i / 50 for i in range(100)))
    assert relapse(Run("watched", back, batches=200, live=True), 2.3) is not None


def test_noise_and_a_fall_of_little_are_no_relapse():
    assert relapse(noisy(2.3, 0.5, noise=0.1), 2.3) is None
    assert relapse(Run("probe", (*(2.3,) * 40, *(2.0,) * 20, *(2.3,) * 40)), 2.3) is None
    assert relapse(Run("probe", (2.3, 0.1, 2.3) * 10), 2.3) is None  # too short


@pytest.mark.parametrize(
    ("losses", "surrogate", "expected"),
    [
        ((*[0.0] * 12, *[0.06] * 60), "", "unknown"),  # a distance to a copy of the model, or a policy gradient: it starts at its optimum
        ((*[0.0] * 12, *[9e9] * 60), "", "diverges"),
        ((*[1.0] * 12, *[500.0] * 60), "", "diverges"),
        ((*[1.0] * 12, *[500.0] * 60), "it weighs", "unknown"),
        ((*[-0.5] * 12, *[500.0] * 60), "", "unknown"),  # below zero at first: its level says nothing
    ],
)
def test_the_users_own_run_diverges_only_where_its_level_says_so(losses, surrogate, expected):
    assert outcome(Run("the script", losses, live=True, surrogate=surrogate)) == expected


@pytest.mark.parametrize(("steps", "towards", "expected"), [(900, 3.0, "unknown"), (1200, 3.0, "stalls"), (1200, 0.0, "unknown")])
def test_a_run_far_above_chance_has_to_lead_somewhere_after_many_steps(steps: int, towards: float, expected: str) -> None:
    """A deep net with dropout whose loss starts at 1e5 times chance, and stays at chance from step 3,000 on: after 1,150 it was at 3.6."""
    half_life = steps / 4
    losses = tuple(towards + 40.0 * 0.5 ** (t / half_life) for t in range(steps))
    assert outcome(Run("probe", losses, batches=4), 0.95) == expected
