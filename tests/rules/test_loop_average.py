"""LOOP012 on literal measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradcheck.rules.loop.average_incomplete import average_incomplete
from gradcheck.types.loop import LoopAverage
from gradcheck.types.structure import Statistics
from tests.literals import location, loop, measurement
from tests.rules.verdicts import findings, no_verdict, only, severities


def seen(**overrides: Any) -> Any:
    values: dict[str, Any] = {"stale": ("1.running_mean",), "evaluated": True, "site": location(40)}
    return measurement(loop=loop(averages=(LoopAverage("teacher", "student", **values | overrides),)))


class TestAverageIncomplete:
    @pytest.mark.parametrize(
        ("facts", "expected"),
        [
            ({}, ["warning"]),
            ({"stale": ()}, []),
            ({"evaluated": False}, []),  # its statistics may be taken later
            ({"evaluated": False, "called": False}, ["info"]),  # or not
            ({"stale": (), "graded": 4}, ["info"]),
            ({"graded": 4}, ["warning"]),
        ],
    )
    def test_buffers_that_evaluation_mode_uses_must_follow(self, facts, expected):
        assert severities(average_incomplete, seen(**facts)) == expected

    @pytest.mark.parametrize(
        ("taken", "initial", "expected"),
        [(False, 0.74, ["info"]), (False, 0.76, ["warning"]), (True, 5.0, ["info"]), (False, None, ["info"])],
    )
    def test_what_the_statistics_of_the_start_cost_decides_for_an_average_that_is_used_later(self, taken, initial, expected):
        m = replace(seen(evaluated=False, called=False, taken=taken), normalization=Statistics(0.5, 0.5, initial=initial))
        assert severities(average_incomplete, m) == expected

    def test_it_names_both_models_and_points_at_the_call(self):
        f = only(average_incomplete, seen())
        assert f.location == location(40) and f.message.startswith("teacher follows the weights of student, not its buffers: 1 of them")

    def test_without_a_follower_there_is_nothing_to_judge(self):
        assert no_verdict(average_incomplete, measurement()) == "not-applicable"
        assert no_verdict(average_incomplete, measurement(loop=loop(averages=()))) == "not-applicable"
        assert no_verdict(average_incomplete, measurement(loop=loop(averages=None))) == "not-measured"
        assert findings(average_incomplete, seen(stale=(), evaluated=False)) == []

    def test_a_copy_that_stays_while_another_models_copy_follows_is_named_with_both(self):
        stays = {"stale": (), "evaluated": False, "beside": ("target_critic", "critic"), "stood": 40}
        f = only(average_incomplete, measurement(loop=loop(averages=(LoopAverage("target_actor", "actor", site=location(7), **stays),))))
        assert f.severity == "info" and f.location == location(7)
        assert f.message.startswith("target_actor is a copy of actor and stays as it was through 40 steps (limit 0), while target_critic ")
