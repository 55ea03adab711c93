"""LOG001 to LOG007 on literal logs: just beyond each limit, and just within."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from gradcheck.rules.log.log_evaluation_departs import log_evaluation_departs
from gradcheck.rules.log.log_gradient_norms import log_gradient_norms
from gradcheck.rules.log.log_loss_diverged import log_loss_diverged
from gradcheck.rules.log.log_loss_flat import log_loss_flat
from gradcheck.rules.log.log_loss_not_finite import log_loss_not_finite
from gradcheck.rules.log.log_loss_spikes import log_loss_spikes
from gradcheck.rules.log.log_rate_jumps import log_rate_jumps
from gradcheck.types.measurement import Measurement
from gradcheck.types.training import LogColumn, LogFacts
from tests.literals import measurement
from tests.rules.verdicts import findings, no_verdict, only

RULES = (
    log_loss_not_finite,
    log_loss_diverged,
    log_loss_spikes,
    log_loss_flat,
    log_rate_jumps,
    log_evaluation_departs,
    log_gradient_norms,
)
FALLING = [1 / (1 + i / 10) for i in range(100)]
ZIGZAG = [1 + 0.01 * (-1) ** i for i in range(60)]


def curve(values: list[float]) -> LogColumn:
    return LogColumn("x", tuple(map(float, range(len(values)))), tuple(values))


def logged(clip: float | None = None, **curves: list[float]) -> Measurement:
    return replace(measurement(), log=LogFacts("CSV", **{name: curve(v) for name, v in curves.items()}, clip=clip))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.code)
def test_without_a_log_or_a_column_there_is_no_verdict(rule):
    assert no_verdict(rule, measurement()) == "not-applicable"
    if rule.code < "LOG005":
        assert findings(rule, logged(loss=FALLING)) == []
    if rule.code not in ("LOG001", "LOG006"):
        few = {"LOG005": "rate", "LOG007": "norm"}.get(rule.code, "loss")
        assert no_verdict(rule, logged(**{few: [1.0, 1.0]})) == "not-measured"


@pytest.mark.parametrize(("bad", "severity"), [(0, None), (1, "error"), (5, "error")])
def test_a_loss_that_ends_as_nan(bad, severity):
    found = findings(log_loss_not_finite, logged(loss=[*FALLING, *[math.nan] * bad]))
    assert [f.severity for f in found] == ([severity] if severity else [])


@pytest.mark.parametrize(("bad", "fires"), [(2, False), (3, True)])
def test_a_norm_that_ends_as_infinity(bad, fires):
    assert bool(findings(log_loss_not_finite, logged(loss=FALLING, norm=[*[1.0] * 200, *[math.inf] * bad]))) == fires


@pytest.mark.parametrize(("bad", "fires"), [(2, False), (3, True)])
def test_a_share_of_values_that_are_not_finite(bad, fires):
    values = [math.nan if i in range(10, 10 + bad) else v for i, v in enumerate(FALLING)]
    assert [f.severity for f in findings(log_loss_not_finite, logged(loss=values))] == ["warning"] * fires


@pytest.mark.parametrize(("end", "severity"), [(0.3, None), (0.4, "warning"), (0.7, "error")])
def test_a_loss_that_rises_again(end, severity):
    values = [*FALLING, *[0.1 + (end - 0.1) * i / 30 for i in range(31)], *[end] * 30]
    assert [f.severity for f in findings(log_loss_diverged, logged(loss=values))] == ([severity] if severity else [])


@pytest.mark.parametrize(("height", "width", "severity"), [(0.1, 5, None), (0.6, 2, None), (0.6, 5, "info"), (0.6, 100, "warning")])
def test_jumps(height, width, severity):
    values = [*ZIGZAG, *[v + height for v in ZIGZAG[:width]], *(ZIGZAG if width < 100 else [1.6] * 60)]
    assert [f.severity for f in findings(log_loss_spikes, logged(loss=values))] == ([severity] if severity else [])


_NOISE = random.Random(0)
SHARD = [2.2 - 0.6 * min(i / 60, 1) + 0.15 * _NOISE.gauss() for i in range(200)]  # falls in 60 points; its noise is that of a batch


def test_spikes_of_a_loss_that_still_falls_fast_are_seen():
    loss = [2.5 + 7.5 * math.exp(-i / 40) + 0.03 * (-1) ** i + 4 * (i >= 80 and i % 30 in (20, 21, 22, 23)) for i in range(200)]
    assert "and 3 more" in only(log_loss_spikes, logged(loss=loss)).message


@pytest.mark.parametrize(("rise", "rate", "severity"), [(0.3, 1.0, None), (0.8, 1.0, "warning"), (0.8, 2.0, None)])
def test_a_stretch_of_other_data_is_seen_through_the_noise(rise, rate, severity):
    """As measured: labels of ten logged steps at random raise the loss by 5 standard deviations of a batch."""
    loss = [v + rise * (100 <= i < 110) for i, v in enumerate(SHARD)]
    rates = [1e-3 * (rate if i >= 100 else 1.0) for i in range(200)]
    assert [f.severity for f in findings(log_loss_spikes, logged(loss=loss, rate=rates))] == ([severity] if severity else [])


@pytest.mark.parametrize(("end", "severity"), [(0.05, None), (0.5, "warning")])
def test_a_slow_divergence_is_seen_through_the_noise(end, severity):
    """As measured: SGD whose rate grows from 0.1 to 2 goes from 1.7 back to 2.1, with a noise of 0.2."""
    loss = [v + max(i - 60, 0) * end / 140 for i, v in enumerate(SHARD)]
    assert [f.severity for f in findings(log_loss_diverged, logged(loss=loss))] == ([severity] if severity else [])


@pytest.mark.parametrize(("times", "severity"), [(50, "warning"), (300, "error")])
def test_a_loss_that_explodes_from_its_start(times, severity):
    loss = [1 + 0.1 * (-1) ** i + (times * 10 ** ((i - 100) / 20) if i < 100 else times) * (i > 20) for i in range(150)]
    assert [f.severity for f in findings(log_loss_diverged, logged(loss=loss))] == ([severity] if severity else [])


@pytest.mark.parametrize(("times", "severity"), [(1e20, "error"), (40, "warning")])
def test_only_a_loss_within_reason_may_have_risen_on_purpose(times, severity):
    """As measured: SGD at 600 times its rate, whose loss comes down again from the highest value."""
    loss = [*FALLING, *[3 * times] * 30, *[2 * times] * 30, *[times * (1 + 0.01 * (-1) ** i) for i in range(60)]]
    assert [f.severity for f in findings(log_loss_diverged, logged(loss=loss))] == [severity]


def test_the_first_steps_of_a_watched_run_prove_no_divergence():
    """As measured: SGD with momentum that falls to 0.6 by step 25, is at 1.9 at step 29, and learns."""
    loss = [1.39 - 0.03 * i for i in range(26)] + [1.2, 1.9, 1.9]
    assert findings(log_loss_diverged, logged(loss=loss))
    assert no_verdict(log_loss_diverged, replace(measurement(), course=LogFacts("watched", curve(loss)))) == "not-measured"


@pytest.mark.parametrize(("fall", "severity"), [(0.0, "warning"), (0.001, "warning"), (0.3, None)])
def test_a_loss_that_does_not_fall(fall, severity):
    values = [v - fall * i / 60 for i, v in enumerate(ZIGZAG)]
    assert [f.severity for f in findings(log_loss_flat, logged(loss=values))] == ([severity] if severity else [])


@pytest.mark.parametrize(("late", "severity"), [(0.00005, "warning"), (0.01, None)])
def test_a_loss_that_only_settles(late, severity):
    """As measured in public logs of losses of 0.4 and 4e25: next to no noise, and nothing learned after the first points."""
    values = [1.0 + 0.005 * 0.8**i - late * i / 60 for i in range(60)]
    assert [f.severity for f in findings(log_loss_flat, logged(loss=values))] == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("values", "fires"),
    [
        ([0.712, 0.717, *[0.6932] * 9, 0.7113, 0.6933], True),  # a restart
        ([1.4, *[1.387, 1.386] * 6], True),
        ([*[0.6932] * 30, *[0.69 - 0.003 * i for i in range(50)]], False),  # it leaves it in the end
        ([0.8, *[0.700, 0.686] * 30], False),
        ([*[2.5 - 0.01 * i for i in range(60)], *[2.3026] * 9], False),
    ],
)
def test_a_loss_that_stays_that_of_guessing(values, fires):
    found = [f for f in findings(log_loss_flat, logged(loss=values)) if "guessing" in f.message]
    assert [f.severity for f in found] == ["warning"] * fires


def test_a_second_half_that_brings_nothing():
    found = only(log_loss_flat, logged(loss=[*FALLING, *[FALLING[-1]] * 120]))
    assert found.severity == "info" and "the second half" in found.message


@pytest.mark.parametrize(
    ("rates", "fires"),
    [
        ([1e-3] * 20 + [9e-3] * 20, False),
        ([1e-3] * 20 + [1.1e-2] * 20, True),
        ([1e-3 * 10**i for i in range(5)] + [10.0] * 30, False),
        ([1e-3] * 20 + [1.1e-5] * 20, False),
        ([1e-3] * 20 + [0.9e-5] * 20, True),
        ([1e-3] * 38 + [0.9e-5] * 2, False),
        ([1e-3] * 37 + [0.0] * 3, False),
        ([1e-3] * 34 + [0.0] * 6, True),
    ],
)
def test_rates(rates, fires):
    found = findings(log_rate_jumps, logged(loss=FALLING[: len(rates)], rate=rates))
    assert [f.severity for f in found] == ["warning"] * fires


@pytest.mark.parametrize(("end", "fires"), [(0.54, False), (0.56, True)])
def test_an_evaluation_that_leaves_the_training(end, fires):
    evaluation = [1.0, 0.7, 0.5, 0.51, 0.52, end, end, end]
    m = logged(loss=FALLING, evaluation=evaluation)
    assert m.log is not None
    steps = tuple(float(12 * i) for i in range(8))
    m = replace(m, log=replace(m.log, evaluation=LogColumn("val", steps, tuple(evaluation))))
    found = findings(log_evaluation_departs, m)
    assert [f.severity for f in found] == ["warning"] * fires
    assert not fires or "lowest at step 24" in found[0].message


@pytest.mark.parametrize(
    ("norms", "clip", "severity"),
    [
        ([1.0] * 40, None, None),
        ([1.0] * 40, 2.0, None),
        ([1.0] * 40, 0.5, "info"),
        ([1.0] * 36 + [0.1] * 4, 0.5, None),
        ([1.0] * 36 + [29.0] * 4, None, None),
        ([1.0] * 36 + [31.0] * 4, None, "warning"),
        ([1.0] * 36 + [0.0] * 4, None, "warning"),
    ],
)
def test_norms(norms, clip, severity):
    found = findings(log_gradient_norms, logged(clip=clip, loss=FALLING, norm=norms))
    assert [f.severity for f in found] == ([severity] if severity else [])


def test_a_rate_that_rises_in_small_steps_between_two_measured_ones_does_not_jump() -> None:
    warming = LogColumn("watched", (0, 1, 2, 3, 5, 55, 105), (0.0, 0.01, 0.02, 0.03, 0.05, 0.55, 0.6))
    thrown = LogColumn("watched", (0, 1, 2, 3, 5, 54, 55, 105), (0.05, 0.05, 0.05, 0.05, 0.05, 0.05, 0.6, 0.6))
    for rate, count in ((warming, 0), (thrown, 1)):
        assert len(findings(log_rate_jumps, replace(measurement(), course=LogFacts("watched", None, None, rate)))) == count
