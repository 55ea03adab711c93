"""INIT003 on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.initialization.residual_growth import residual_growth
from gradcheck.types.measurement import Measurement
from tests.literals import falling, location, measurement, run, stalled, stream
from tests.rules.verdicts import no_verdict, only, severities


def net(*streams: Any, **overrides: Any) -> Measurement:
    return measurement(**{"streams": streams, "probe": stalled()} | overrides)


@pytest.mark.parametrize(
    ("growth", "ratio", "expected"), [(9.9, 1.0, []), (10.1, 1.0, ["warning"]), (5.0, 1.9, []), (5.0, 2.1, ["warning"])]
)
def test_growth_and_ratio(growth, ratio, expected):
    assert severities(residual_growth, net(stream(growth, ratio))) == expected


@pytest.mark.parametrize(("later", "expected"), [(0.24, []), (0.26, ["warning"])])
def test_branches_that_fall_behind_are_healthy(later, expected):
    grown = stream(50.0, ratios=(2.0,) * 4 + (later,) * 4)
    assert severities(residual_growth, net(grown)) == expected


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        (stalled(), "warning"),
        (run(), "info"),
        (run(falling(6.8, 0.5)), "info"),  # chance is 2.30
        (run(falling(7.0, 0.5)), "warning"),
    ],
)
def test_what_it_does_decides(probe, expected):
    assert severities(residual_growth, net(stream(50.0), probe=probe)) == [expected]


def test_what_is_not_judged():
    assert no_verdict(residual_growth, net()) == "not-applicable"
    assert no_verdict(residual_growth, net(stream(50.0, sums=2))) == "not-applicable"
    assert no_verdict(residual_growth, net(stream(50.0, normalized=True))) == "not-applicable"
    assert no_verdict(residual_growth, net(stream(50.0), pretrained=True)) == "not-applicable"


def test_the_worst_stream_is_named():
    f = only(residual_growth, net(stream(20.0), stream(50.0, site=location(71))))
    assert f.location == location(71) and "grows 50 times over 8 sums (limit 10)" in f.message
    assert "blocks.{0..7}" in f.message and "does not learn" in f.message
