from __future__ import annotations

import math

import pytest

from gradcheck.analysis.convergence import outcome
from gradcheck.analysis.curves import thirds
from gradcheck.live.cadence import StepTimer
from gradcheck.live.record import MOST, DownsampledSeries, thinned
from gradcheck.types.training import UNBINNED, LogColumn, Run


def test_a_series_keeps_the_first_and_the_means_of_the_rest() -> None:
    series = DownsampledSeries()
    count = UNBINNED + 8 * MOST + 3
    for i in range(count):
        series.add(float(i))
    values = series.values()
    assert values[:UNBINNED] == tuple(float(i) for i in range(UNBINNED))
    assert len(values) <= UNBINNED + 2 * MOST + 1
    assert series.count == count and series.last == count - 1
    bins = [values[UNBINNED + i] for i in range(len(series.bins))]
    slow = [sum(range(UNBINNED + i * series.width, UNBINNED + (i + 1) * series.width)) / series.width for i in range(len(bins))]
    assert bins == pytest.approx(slow)


def test_a_series_that_ends_in_nan_says_so() -> None:
    series = DownsampledSeries()
    for i in range(5000):
        series.add(1.0 if i < 4990 else math.nan)
    assert math.isnan(series.values()[-1])


def test_thinning_keeps_both_ends() -> None:
    steps = list(range(0, 1000, 10))
    kept = sorted(thinned(steps, 60))
    assert kept[:4] == steps[:4] and kept[-6:] == steps[-6:] and len(kept) < len(steps)
    assert thinned(steps[:60], 60) == frozenset(steps[:60])


def test_pace_tells_what_measuring_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("gradcheck.live.cadence.time.perf_counter", lambda: now[0])
    pace = StepTimer()
    for i in range(101):
        if i == 1:
            pace.begin_share()
        now[0] += 0.15 if i % 10 == 0 else 0.1
        pace.step(i % 10 == 0)
        if i % 10 == 0:
            now[0] += 0.01
            pace.resume()
    assert pace.rate == pytest.approx(10.0)
    assert pace.overhead == pytest.approx((0.05 * 10 + 0.01 * 10) / (10.0 + 0.6), rel=1e-3)  # what the first step took is spent once


@pytest.mark.parametrize(
    ("losses", "chance", "wanted"),
    [
        ([2.3] * 100, 2.3, "unknown"),  # resumed, or led by rewards: a plateau proves nothing
        ([0.05 + 0.01 * i for i in range(200)], None, "unknown"),  # Q-learning
        ([2.3 - 0.01 * i for i in range(100)], 2.3, "learns"),
        ([2.3 * 0.5 ** (i / 20) for i in range(5000)], 2.3, "learns"),
        ([2.3, *[8.0] * 99], 2.3, "diverges"),
        ([0.5, *[8.0] * 99], None, "unknown"),
        ([0.5 * 1.2**i for i in range(100)], None, "diverges"),
        ([2.3] * 20 + [800.0] + [2.3] * 20, 2.3, "unknown"),  # a spike
    ],
)
def test_what_becomes_of_a_run_of_the_users_own(losses: list[float], chance: float | None, wanted: str) -> None:
    assert outcome(Run("the watched run", tuple(losses), live=True), chance) == wanted


def test_the_first_steps_say_nothing_of_a_later_third() -> None:
    """Of a norm that rises at once and then rests, few steps were measured."""
    few = (0, 1, 2, 3, 900, 1700, 1800, 1900, 1950)
    norm = lambda s: 1.0 if s < 10 else 4.0 + s / 10_000  # noqa: E731
    assert thirds(LogColumn("norm", tuple(map(float, few)), tuple(map(norm, few)))) is None
    more = (0, 1, 2, 3, 500, 900, 1100, 1700, 1800, 1900, 1950)
    grown = thirds(LogColumn("norm", tuple(map(float, more)), tuple(map(norm, more))))
    assert grown is not None and grown[1] < 1.1
