"""What is planned for a budget, and what the user may ask."""

from __future__ import annotations

import pytest

from gradcheck.errors import ConfigError
from gradcheck.trials.options import Options
from gradcheck.trials.plan import COSTLIER, ENOUGH_STEPS, FEWEST_STEPS, MOST_STEPS, Planner


def seconds(chosen, entries, variants, step):
    return chosen.steps * COSTLIER * step * chosen.runs(entries, variants)


@pytest.mark.parametrize("budget", [20, 60, 120, 600])
def test_a_plan_fits_its_budget(budget):
    chosen = Planner(12, 16).plan(budget, 1e-3)
    assert chosen.steps == FEWEST_STEPS or seconds(chosen, 12, 16, 1e-3) <= budget


def test_more_time_is_more_steps_or_more_seeds():
    plans = [Planner(12, 16).plan(budget, 1e-3) for budget in (10, 30, 60, 120, 1000)]
    assert [p.runs(12, 16) for p in plans] == sorted(p.runs(12, 16) for p in plans)
    assert plans[-1].steps == MOST_STEPS and plans[-1].seeds == 10
    assert all(p.seeds >= 6 for p in plans)


def test_seeds_are_given_up_before_runs_get_too_short():
    assert Planner(12, 0).plan(40, 1e-3).steps >= ENOUGH_STEPS > Planner(12, 0).plan(4, 1e-3).steps


def test_what_the_user_sets_stays():
    chosen = Planner(12, 0, steps=77, seeds=4).plan(1, 1.0)
    assert (chosen.steps, chosen.seeds) == (77, 4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"budget": 0}, "budget must be at least 1"),
        ({"budget": float("nan")}, "budget must be at least 1"),
        ({"seeds": 2}, "fewer give no interval"),
        ({"steps": 0}, "steps must be at least 3"),
        ({"search": "magic"}, "unknown search 'magic'"),
        ({"trials": 5}, "--trials is for a search"),
        ({"study": "x.log"}, "--study is for a search"),
        ({"folds": 3, "time_ordered": True}, "exclude each other"),
        ({"folds": 1}, "not a cross-validation"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_bad_options_are_one_clear_error(wrong, said):
    with pytest.raises(ConfigError, match=said) as error:
        Options(**wrong)
    assert error.value.hint
