"""LOOP008 on literal measurements."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from gradcheck.live.replicas import RankLevels
from gradcheck.rules.loop.ranks_disagree import ranks_disagree
from gradcheck.types.gauges import RankFacts, RankLevel, RankStep
from gradcheck.types.measurement import Measurement, NotMeasured
from tests.literals import loop, measurement
from tests.rules.verdicts import findings, no_verdict, only, severities


def step(number: int, distance: float, **overrides: Any) -> RankStep:
    values: dict[str, Any] = {"parameter": "body.0.weight", "rank": 1, "differing": 5 if distance else 0, "compared": 6}
    return RankStep(number, distance, **values | overrides)


def seen(*distances: float, wrapper: str = "", count: int = 2, **overrides: Any) -> Measurement:
    """Ranks compared at steps 0, 1, 2, ..."""
    steps = tuple(step(i, d, **overrides) for i, d in enumerate(distances))
    return measurement(loop=loop(), ranks=RankFacts(count, wrapper, steps))


def test_one_process_has_nothing_to_disagree_with():
    assert no_verdict(ranks_disagree, measurement(loop=loop())) == "not-applicable"


def test_sharded_parameters_are_no_replicas():
    assert no_verdict(ranks_disagree, seen()) == "not-applicable"


def test_why_replicas_were_not_compared_is_said():
    m = measurement(loop=loop(), ranks=RankFacts(4), not_measured=(NotMeasured("replicas", "the ranks are divided into groups"),))
    assert no_verdict(ranks_disagree, m) == "not-measured"


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ((0.0, 0.0, 0.0, 0.0), []),
        ((0.0, 0.9e-5, 0.9e-5, 0.9e-5), []),
        ((0.0, 1.1e-5, 1.1e-5), ["error"]),
        ((0.0, 0.0, 0.1), []),  # once is not enough
        ((0.0, 0.1, 0.1, 0.0), []),
        ((0.1, 0.1, 0.0, 0.1, 0.1), ["info"]),  # averaged now and then
        ((0.0, math.inf, math.inf), ["error"]),
    ],
)
def test_replicas_must_stay_equal(distances, expected):
    assert severities(ranks_disagree, seen(*distances)) == expected


@pytest.mark.parametrize(("same", "expected"), [(0, []), (1, []), (2, ["warning"])])
def test_each_rank_is_to_have_batches_of_its_own(same, expected):
    m = seen(0.0, 0.0)
    assert m.ranks is not None
    assert severities(ranks_disagree, replace(m, ranks=replace(m.ranks, same_batches=same))) == expected


def test_a_start_from_different_parameters_is_told_from_a_drift():
    start, drift = only(ranks_disagree, seen(1.4, 1.4)), only(ranks_disagree, seen(0.0, 0.01, 0.02))
    assert "the 2 ranks started from different parameters" in start.message and "1.4 times its norm" in start.message
    assert "drift apart from step 1 on" in drift.message and "body.0.weight on rank 1 is 2 %" in drift.message
    assert start.layers == ("body.0",) and "5 of 6 parameters" in start.message


def test_the_cause_and_the_cure_depend_on_what_was_seen():
    bare = only(ranks_disagree, seen(0.0, 0.1, 0.1, gradients=0.4))
    wrapped = only(ranks_disagree, seen(0.0, 0.1, 0.1, wrapper="DistributedDataParallel", one_sided=("head.weight",)))
    assert "not averaged before the step (their norms differ by up to 40 %)" in bare.message
    assert "wrap the model" in bare.remedies[0].text and "no_sync()" in wrapped.remedies[0].text
    assert "head.weight had a gradient on some ranks only" in wrapped.message


def test_the_limits_are_settings():
    assert not findings(ranks_disagree, seen(0.0, 0.1, 0.1), distance=0.2)
    assert not findings(ranks_disagree, seen(0.0, 0.1, 0.1), steps=3)


@pytest.mark.parametrize(
    ("own", "steps", "score", "fires"), [(1.4, 300, 30.0, True), (1.2, 300, 30.0, False), (1.4, 50, 30.0, False), (1.4, 300, 8.0, False)]
)
def test_a_rank_with_other_data(own, steps, score, fires):
    m = seen(0.0, 0.0, count=3)
    m = replace(m, ranks=replace(m.ranks, level=RankLevel(2, steps, own, 1.0, score)))
    assert severities(ranks_disagree, m) == ["warning"] * fires
    assert not fires or "rank 2" in only(ranks_disagree, m).message


@pytest.mark.parametrize("how", ["labels", "simple", "one batch", "alike"])
def test_a_rank_whose_data_change_is_named_with_the_step(how: str):
    draw, levels = random.Random(0), RankLevels()
    for step in range(300):
        losses = {rank: 0.7 + 0.03 * draw.gauss(0, 1) for rank in range(2)}
        if step >= 200 and how in ("labels", "simple"):
            losses[1] += (2.5 if how == "labels" else -0.6) * 0.9 ** (step - 200)  # it is learned, and the other rank forgets
            losses[0] += 0.4 * (how == "labels")
        losses[1] += 50 * (how == "one batch" and step == 200)
        levels.note(losses, step)
    m = seen(0.0, 0.0, count=2)
    told = findings(ranks_disagree, replace(m, ranks=replace(m.ranks, jump=levels.jump)))
    assert len(told) == (how in ("labels", "simple"))
    assert all("from step 200 on" in f.message and "losses of rank 1" in f.message for f in told)


def test_levels_tell_the_rank_whose_losses_lie_apart():
    draw = random.Random(0)
    levels, alike = RankLevels(), RankLevels()
    for step in range(400):
        losses = [1.0 + 0.3 * draw.gauss(0, 1) for _ in range(4)]
        alike.note(dict(enumerate(losses)), step)
        levels.note({rank: x + 0.5 * (rank == 1) for rank, x in enumerate(losses)}, step)
    levels.note({0: 1.0, 1: math.nan}, 400)
    found, other = levels.furthest(), alike.furthest()
    assert found is not None and (found.rank, found.steps) == (1, 400) and found.own - found.others == pytest.approx(0.5, abs=0.1)
    assert found.score > 20 and other is not None and other.score < 5 and abs(other.own - other.others) < 0.1
