"""WATCH001 to WATCH009 on literal runs, and the rules of logs on the course of a watched run: just beyond each limit, and just within."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradcheck.judge.select import for_these
from gradcheck.rules.log.log_loss_diverged import log_loss_diverged
from gradcheck.rules.log.log_loss_flat import log_loss_flat
from gradcheck.rules.log.log_loss_spikes import log_loss_spikes
from gradcheck.rules.log.log_rate_jumps import log_rate_jumps
from gradcheck.rules.optimization.learning_rate_too_high import learning_rate_too_high
from gradcheck.rules.watch.attention_logits_grow import attention_logits_grow
from gradcheck.rules.watch.expert_dies import expert_dies
from gradcheck.rules.watch.gradient_out_of_line import gradient_out_of_line
from gradcheck.rules.watch.gradients_leave_format import gradients_leave_format
from gradcheck.rules.watch.loss_scale_falls import loss_scale_falls
from gradcheck.rules.watch.output_logits_drift import output_logits_drift
from gradcheck.rules.watch.second_moment_lags import second_moment_lags
from gradcheck.rules.watch.signal_runs_away import signal_runs_away
from gradcheck.rules.watch.weights_run_away import weights_run_away
from gradcheck.types.gauges import Departure, Gauge, Quantity, Spike
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import ParameterStep
from gradcheck.types.structure import Router
from gradcheck.types.training import LogColumn, LogFacts
from tests.literals import layer, measurement, parameter, snapshots, stats
from tests.rules.verdicts import findings, no_verdict, only, severities

RULES = (
    second_moment_lags,
    gradient_out_of_line,
    attention_logits_grow,
    output_logits_drift,
    expert_dies,
    weights_run_away,
    signal_runs_away,
    loss_scale_falls,
    gradients_leave_format,
)
LOOKS = tuple(range(0, 2000, 100))


def gauge(quantity: Quantity, values: list[float], departure: Departure | None = None, name: str = "fc.weight", layer: str = "fc") -> Gauge:
    steps = LOOKS[: len(values)]
    at = max(range(len(values)), key=lambda i: values[i])
    return Gauge(quantity, name, layer, steps, tuple(values), values[at], steps[at], departure)


def departure(value: float = 8.0, lasted: int = 1, score: float = 30.0, **more: Any) -> Departure:
    return Departure(1000, value, 1.0, score, lasted, **{"back": True} | more)


def watched(*gauges: Gauge, **more: Any) -> Measurement:
    m = measurement()
    return replace(m, probe=replace(m.probe, live=True), gauges=gauges, steps=2000, measured_steps=LOOKS, **more)


def course(**curves: list[float]) -> Measurement:
    columns = {name: LogColumn(name, tuple(map(float, range(len(v)))), tuple(v)) for name, v in curves.items()}
    return watched(course=LogFacts("the watched run", **columns))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.code)
def test_a_scan_is_not_judged(rule):
    assert no_verdict(rule, measurement()) == "not-applicable"


@pytest.mark.parametrize(("value", "lasted", "fires"), [(7.9, 1, False), (8.1, 1, True), (2.2, 5, False), (2.4, 1, False), (2.4, 2, True)])
def test_a_second_moment_that_lags(value, lasted, fires):
    m = watched(gauge("second-moment-lag", [1.0] * 20, departure(value, lasted)), gauge("second-moment-lag", [1.0] * 20, name="other"))
    assert severities(second_moment_lags, m) == ["warning"] * fires
    if fires:
        found = only(second_moment_lags, m)
        assert found.layers == ("fc",) and "fc.weight" in found.message and "1 to 8 steps later" in found.message


@pytest.mark.parametrize(
    ("spike", "look", "after", "severity"),
    [(1000, 1001, 0.6, "info"), (1000, 1001, 13.7, "warning"), (1000, 1009, 0.6, "warning"), (1003, 1001, 0.6, "warning")],
)
def test_a_batch_with_a_high_loss_is_no_lag_that_a_spike_follows(spike, look, after, severity):
    lags = Gauge("second-moment-lag", "fc.weight", "fc", (0, 900, 1000, look), (1.0, 1.0, 9.9, after), 9.9, 1000)
    m = watched(lags, spikes=(Spike(spike, "loss", 0.45, 0.08),))
    assert only(second_moment_lags, m).severity == severity


@pytest.mark.parametrize(("score", "lasted", "severity"), [(19.0, 5, None), (21.0, 1, "info"), (21.0, 2, "warning")])
def test_a_gradient_that_leaves_its_own_history(score, lasted, severity):
    m = watched(gauge("gradient", [1.0] * 20, departure(40.0, lasted, score)))
    assert severities(gradient_out_of_line, m) == ([severity] if severity else [])


@pytest.mark.parametrize(
    ("values", "fires"),
    [([99.0] * 20, False), ([101.0] * 20, True), ([45.0] * 10 + [48.0] * 10, False), ([3.0 * 1.16**i for i in range(20)], True)],
)
def test_attention_logits(values, fires):
    m = watched(
        gauge("attention-logit", values, name="attn, head 1", layer="attn"),
        gauge("attention-entropy", [0.5] * 20, name="attn, head 1", layer="attn"),
    )
    assert severities(attention_logits_grow, m) == ["warning"] * fires
    if fires:
        assert "head 1" in only(attention_logits_grow, m).message


@pytest.mark.parametrize(("values", "fires"), [([120.0] * 20, False), ([99.0] * 20, False), ([20.0 * 1.1**i for i in range(20)], True)])
def test_output_logits(values, fires):
    assert severities(output_logits_drift, watched(gauge("log-z", values))) == ["warning"] * fires


@pytest.mark.parametrize(("last", "fires"), [([0.0] * 3, True), ([0.0] * 2, False), ([0.0, 0.004, 0.0], True), ([0.0, 0.006, 0.0], False)])
def test_an_expert_that_dies(last, fires):
    router = Router("moe", 4, 1, 1000, (0.0, 0.4, 0.3, 0.3), (0.25,) * 4, 0.9)
    m = watched(gauge("expert-load", [0.25] * 12 + last, name="moe, expert 0", layer="moe"), routers=(router,))
    assert severities(expert_dies, m) == ["warning"] * fires
    assert no_verdict(expert_dies, replace(m, routers=(replace(router, tokens=100),))) == "not-measured"


def test_an_expert_that_never_had_tokens_is_another_matter():
    router = Router("moe", 4, 1, 1000, (0.0, 0.4, 0.3, 0.3), (0.25,) * 4, 0.9)
    m = watched(gauge("expert-load", [0.1] + [0.0] * 19, name="moe, expert 0", layer="moe"), routers=(router,))
    assert findings(expert_dies, m) == []


@pytest.mark.parametrize(("factor", "fires"), [(1.25, True), (1.15, False)])
def test_weights_that_gain_speed(factor, fires):
    norms = [1.0 + factor**i for i in range(20)]
    steps = tuple(ParameterStep(s, n, 0.1) for s, n in zip(LOOKS, norms, strict=True))
    m = watched(parameters=(parameter("fc.weight", steps=steps), parameter("fc.bias", steps=steps, shape=(4,))))
    assert severities(weights_run_away, m) == ["warning"] * fires


def test_weights_that_grow_as_in_any_training_do_not_run_away():
    steps = tuple(ParameterStep(s, 1.0 + s**0.5, 0.1) for s in LOOKS)
    assert findings(weights_run_away, watched(parameters=(parameter("fc.weight", steps=steps),))) == []
    few = replace(watched(), steps=200)
    assert no_verdict(weights_run_away, few) == "not-measured"


@pytest.mark.parametrize(("factor", "fires"), [(1.3, True), (1.2, False)])
def test_a_signal_that_gains_speed(factor, fires):
    sizes = [1.0 + factor**i for i in range(20)]
    shots = tuple(snapshots(size, steps=(step,))[0] for step, size in zip(LOOKS, sizes, strict=True))
    assert severities(signal_runs_away, watched(layers=(layer("block", snapshots=shots),))) == ["warning"] * fires


@pytest.mark.parametrize(
    ("values", "fires"),
    [([65536.0, 1.0], False), ([65536.0, 0.5], True), ([2.0**24] + [2.0**12] * 19, True), ([2.0**16] + [2.0**10] * 19, False)],
)
def test_a_loss_scale_that_falls(values, fires):
    values = [values[0], *[values[-1]] * 19] if len(values) == 2 else values
    if values[-1] == 1.0:  # at the limit of the one, far beyond that of the other
        assert severities(loss_scale_falls, watched(gauge("loss-scale", values)), fall=1e9) == []
    else:
        assert severities(loss_scale_falls, watched(gauge("loss-scale", values))) == ["warning"] * fires


@pytest.mark.parametrize(("below", "fires"), [(60, True), (40, False)])
def test_gradients_that_sink_to_the_end_of_float16(below, fires):
    small = stats(2.0**-15, exponent_low=-15, exponent_counts=(below, 100 - below))
    shots = tuple(replace(s, gradient=small) for s in snapshots(steps=LOOKS))
    m = watched(layers=(layer("fc", snapshots=shots, dtype="float16"),))
    assert severities(gradients_leave_format, m) == ["warning"] * fires
    scaled = replace(m, probe=replace(m.probe, loss_scale=1024.0))
    assert findings(gradients_leave_format, scaled) == []
    assert no_verdict(gradients_leave_format, watched()) == "not-applicable"


def test_the_course_of_a_watched_run_is_judged_by_the_rules_of_logs():
    falls = [1 / (1 + i / 10) for i in range(200)]
    noisy = [v + 0.002 * (-1) ** i for i, v in enumerate(falls)]
    for rule in (log_loss_diverged, log_loss_spikes, log_loss_flat, log_rate_jumps):
        assert rule in for_these((rule,), [course(loss=noisy)])
        assert rule not in for_these((rule,), [measurement()])
    assert findings(log_loss_diverged, course(loss=noisy)) == []
    found = only(log_loss_spikes, course(loss=[*noisy, *[0.9, 0.91] * 40]))
    assert found.severity == "warning" and "gradcheck scan" in found.remedies[0].text
    assert only(log_rate_jumps, course(rate=[1e-3] * 20 + [1e-1] * 20)).severity == "warning"


@pytest.mark.parametrize(("chance", "severity"), [(1.1, "error"), (None, "warning"), (2.5, "warning")])
def test_a_live_loss_that_is_lost_again_is_an_error_above_chance_only(chance, severity):
    values = [2.0 - i / 60 for i in range(100)] + [0.4 + i / 50 for i in range(100)]
    m = replace(course(loss=values), chance=chance)
    assert severities(log_loss_diverged, m) == [severity]


@pytest.mark.parametrize(
    ("after", "ratio", "at_once"),
    [
        ([9.0 * 0.98**i + 2.0 for i in range(150)], 0.01, True),  # other labels: learned anew
        ([11.0] * 40, 0.01, True),  # too soon to tell
        ([11.0] * 150, 0.01, False),  # no step brings it down
        ([9.0 * 0.98**i + 2.0 for i in range(150)], 0.2, False),  # by large steps
        ([2.0 * 1.2**i for i in range(9)] + [11.0 * 0.99**i for i in range(150)], 0.01, False),  # from step to step
    ],
)
def test_a_loss_that_jumps_at_once_after_small_steps_is_not_of_the_rate(after, ratio, at_once):
    loss = [2.3 * 0.96**i + 0.01 * (-1) ** i + 0.02 for i in range(250)] + after
    rate = LogColumn("rate", tuple(map(float, LOOKS)), (1e-3,) * len(LOOKS))
    steps = tuple(ParameterStep(s, 1.0, 0.1, update_ratio=ratio) for s in LOOKS)
    m = course(loss=loss)
    assert m.course is not None
    m = replace(m, course=replace(m.course, rate=rate), parameters=(parameter("fc.weight", steps=steps),), chance=2.3)
    m = replace(m, probe=replace(m.probe, losses=tuple(loss), batches=len(loss)))
    found = findings(log_loss_spikes, m)
    assert any("at once, after small updates" in f.message for f in found) == at_once
    assert bool(findings(log_loss_diverged, m)) != at_once and bool(findings(learning_rate_too_high, m)) != at_once
    lags = Gauge("second-moment-lag", "fc.weight", "fc", (0, 250), (1.0, 15.0), 15.0, 250)
    assert only(second_moment_lags, replace(m, gauges=(lags,))).severity == ("info" if at_once else "warning")


def test_a_live_loss_that_does_not_fall_is_advice_after_500_steps():
    flat = [1 + 0.01 * (-1) ** i for i in range(600)]
    assert severities(log_loss_flat, course(loss=flat)) == ["info"]
    assert no_verdict(log_loss_flat, course(loss=flat[:400])) == "not-measured"


def test_small_gradients_of_a_loss_that_has_fallen_by_far_are_advice():
    small = stats(2.0**-15, exponent_low=-15, exponent_counts=(90, 10))
    shots = tuple(replace(s, gradient=small) for s in snapshots(steps=LOOKS))
    m = watched(layers=(layer("fc", snapshots=shots, dtype="float16"),))
    learned = replace(m, probe=replace(m.probe, losses=tuple(2.3 * 0.95**i for i in range(100))))
    assert severities(gradients_leave_format, learned) == ["info"]


def test_spikes_of_a_watched_run_that_come_back_are_advice():
    noisy = [1 + 0.01 * (-1) ** i for i in range(400)]
    for start in range(60, 400, 60):
        noisy[start : start + 4] = [2.0] * 4
    assert severities(log_loss_spikes, course(loss=noisy)) == ["info"]
    m = course(loss=noisy)
    assert severities(log_loss_spikes, replace(m, log=m.course)) == ["warning"]
