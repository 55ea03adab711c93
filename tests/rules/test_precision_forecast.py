"""NUM006 on literal measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradcheck.report.table import forecast_table
from gradcheck.rules.numerics.precision_forecast import precision_forecast
from gradcheck.types.layers import Layer, Snapshot
from gradcheck.types.loop import LoopScaler
from gradcheck.types.measurement import Measurement
from tests.literals import falling, layer, location, loop, loss_call, measurement, run, stats
from tests.rules.verdicts import findings, no_verdict, only, severities

OFF = LoopScaler(False, 1.0, 0, 0, 0, 0, step_site=location(90))  # made, and switched off for want of a GPU


def spanning(low: int, counts: tuple[int, ...], gradient: bool = False, **overrides: Any) -> Layer:
    odd, plain = stats(1.0, exponent_low=low, exponent_counts=counts, min=0.0, max=2.0**low), stats(1.0)
    output, back = (plain, odd) if gradient else (odd, plain)
    return layer("fc", snapshots=(Snapshot(0, output, back),), **overrides)


def of(*layers: Layer, scaler: LoopScaler | None = OFF, **overrides: Any) -> Measurement:
    values: dict[str, Any] = {"layers": layers, "parameters": (), "loop": loop(scaler=scaler) if scaler is not None else None}
    return measurement(**values | overrides)


@pytest.mark.parametrize(("highest", "expected"), [(15, []), (16, ["info"])])
def test_outputs_beyond_the_range_of_float16(highest, expected):
    m = of(spanning(0, (99,) + (0,) * (highest - 1) + (1,)))
    assert severities(precision_forecast, m) == expected
    if expected:
        assert "training is set up for fp16: 1 % of the activations of fc" in only(precision_forecast, m).message


@pytest.mark.parametrize(("share", "expected"), [(5, []), (6, ["info"])])
def test_gradients_too_far_below_the_largest(share, expected):
    span = (share,) + (0,) * 40 + (100 - share,)  # 41 powers of two: float16 holds 40 of them
    assert severities(precision_forecast, of(spanning(-60, span, gradient=True))) == expected


@pytest.mark.parametrize("type_", ["Float8Linear", "MXLinear"])
def test_layers_that_compute_in_eight_bits(type_):
    wide = spanning(-30, (50,) + (0,) * 25 + (50,), type=type_)
    assert severities(precision_forecast, of(wide, scaler=None)) == ["info"]
    assert findings(precision_forecast, of(spanning(-4, (50, 50), type=type_), scaler=None)) == []


def test_no_forecast_where_nothing_narrow_is_set_up():
    wide = spanning(-60, (50,) + (0,) * 90 + (50,))
    assert findings(precision_forecast, of(wide, scaler=None, losses=(loss_call("cross_entropy"),))) == []
    assert no_verdict(precision_forecast, of(wide, scaler=None, losses=(loss_call("mse_loss"),))) == "not-applicable"


def test_what_was_measured_in_half_precision_says_nothing_about_it():
    assert findings(precision_forecast, of(spanning(0, (1,) * 20, dtype="float16"))) == []


@pytest.mark.parametrize(("zeros", "expected"), [(4, []), (5, ["info"])])
def test_a_cross_entropy_of_exactly_zero(zeros, expected):
    losses = (*falling(2.3, 1e-6, 100 - zeros), *(0.0,) * zeros)
    m = replace(of(layer("fc"), scaler=None, losses=(loss_call("cross_entropy"),)), probe=run(losses=losses))
    assert severities(precision_forecast, m) == expected
    assert severities(precision_forecast, replace(m, losses=(loss_call("mse_loss"),), loop=loop(scaler=OFF))) == []


def test_the_table_shows_what_loses_most():
    lines = forecast_table(of(spanning(-30, (50,) + (0,) * 25 + (50,)), layer("out")))
    assert lines[0].split() == ["layer", "numbers", "bf16", "fp16", "E4M3", "E5M2", "MXFP8"]
    assert lines[1].split() == ["fc", "activations", "0", "%", "50", "%", "50", "%", "0", "%", "50", "%"]
    assert "could hold all" in forecast_table(of(layer("out")))[0]
