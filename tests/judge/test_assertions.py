"""Assertions on numbers: read from the configuration, judged after the rules, shown at their line."""

from __future__ import annotations

import math

import pytest

from gradcheck.analysis.statistics import STATS, aggregated, values
from gradcheck.config.settings import Settings, load, settings_from
from gradcheck.errors import ConfigError
from gradcheck.judge.gate_rules import asserted
from gradcheck.types.finding import RuleState
from tests.literals import layer, measurement, run
from tests.report.reports import FAULTY, report

GATE = RuleState("META002", "failed-assertion", "not-applicable", "no assertions in the configuration")


def checked(assertions, *findings, losses=((2.0, 1.0),), **overrides):
    settings = settings_from({"assert": assertions})
    seeds = tuple(measurement(probe=run(list(each))) for each in losses)
    return asserted(report(*findings, states=(GATE,), **{"measurements": seeds} | overrides), settings)


def failed(*arguments, **options):
    return [f for f in checked(*arguments, **options).findings if f.code == "META002"]


def test_a_number_within_its_limits_passes():
    done = checked({"stat:loss.final": {"min": 0.5, "max": 1.0}})
    assert not done.findings and done.rules[-1].status == "passed"


def test_a_number_beyond_a_limit_is_a_finding_with_value_limit_and_severity():
    (high,) = failed({"stat:loss.final": {"max": 0.9}})
    assert (high.severity, high.name) == ("error", "failed-assertion")
    assert high.message == "stat:loss.final is 1, above its greatest allowed value 0.9, which this project's configuration sets"
    assert (high.evidence[0].value, high.evidence[0].limit, high.evidence[0].comparison) == (1.0, 0.9, ">")
    (low,) = failed({"stat:loss.final": ["warning", {"min": 1.1}]})
    assert low.severity == "warning" and "below its least allowed value 1.1" in low.message


def test_nan_and_what_was_not_measured_do_not_pass():
    assert failed({"stat:loss.final": {"max": 9.0}}, losses=((2.0, math.nan),))
    (missing,) = failed({"stat:loss.validation": {"max": 9.0}})
    assert "stat:loss.validation was not measured here" in missing.message and not missing.evidence


def test_seeds_are_aggregated():
    losses = ((2.0, 1.0), (2.0, 1.5), (2.0, 5.0))
    limits = {"median": (1.4, 1.5), "optimistic": (0.9, 1.0), "pessimistic": (4.9, 5.0)}
    for aggregate, (fails, passes) in limits.items():
        assert failed({"stat:loss.final": {"max": fails, "aggregate": aggregate}}, losses=losses)
        assert not failed({"stat:loss.final": {"max": passes, "aggregate": aggregate}}, losses=losses)
    assert aggregated([1.0, 2.0, 9.0], "pessimistic", lower=False) == 1.0


def test_scores_can_be_asserted():
    rules = (RuleState("GRAD001", "vanishing-gradient", "passed"), GATE)
    assert not failed({"score:gradients": {"min": 100}}, rules=rules)
    (low,) = failed({"score:gradients": {"min": 50}}, FAULTY)
    assert low.evidence[0].value < 50 and low.evidence[0].unit == "of 100"
    with pytest.raises(ConfigError, match="unknown score 'gradient'"):
        failed({"score:gradient": {"min": 50}})


def test_every_statistic_reads_a_measurement():
    m = measurement(layers=(layer("act", "activation", units=10, dead_units=4), layer("fc")))
    got = {name: values(name, [m]) for name in STATS}
    assert got["dead-share.max"] == [0.4] and got["parameters"] == [float(sum(p.count for p in m.parameters))]
    assert got["loss.ratio"] == [pytest.approx(got["loss.final"][0] / got["loss.first"][0])]
    assert got["loss.validation"] == [] and got["steps"] == [float(m.steps)]
    assert all(math.isfinite(v) for numbers in got.values() for v in numbers)


def test_unselected_they_are_not_judged():
    settings = settings_from({"assert": {"stat:loss.final": {"max": 0.0}}})
    assert not asserted(report(), settings).findings
    assert asserted(report(states=(GATE,)), Settings()).rules[-1] == GATE


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"stat:loss.fianl": {"max": 1}}, "unknown number 'stat:loss.fianl'"),
        ({"loss": {"max": 1}}, "unknown number 'loss'"),
        ({"stat:loss.final": 1.8}, "must be { min"),
        ({"stat:loss.final": {"maximum": 1.8}}, "must be { min"),
        ({"stat:loss.final": {"max": "1"}}, "must be a number"),
        ({"stat:loss.final": ["fatal", {"max": 1}]}, "must be error, warning or info"),
        ({"stat:loss.final": {"max": 1, "aggregate": "mean"}}, "unknown aggregate"),
        ([1], "must be a table"),
    ],
)
def test_mistakes_are_errors_with_a_next_step(value, message):
    with pytest.raises(ConfigError, match=message):
        settings_from({"assert": value})


def test_a_finding_stands_at_the_line_of_its_assertion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gradcheck.toml").write_text('fail-on = "error"\n\n[assert]\n"stat:loss.final" = { max = 0.5 }\n')
    (found,) = asserted(report(states=(GATE,), measurements=(measurement(probe=run([2.0, 1.0])),)), load()).findings
    assert str(found.location) == "gradcheck.toml:4:1"


def test_a_line_of_config_goes_over_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gradcheck.toml").write_text('[assert]\n"stat:loss.final" = { max = 0.5 }\n"stat:steps" = { min = 1 }\n')
    settings = load(config=["gradcheck.toml", "assert = { 'stat:loss.final' = { max = 7 } }"])
    assert [(a.name, a.minimum, a.maximum) for a in settings.assertions] == [("stat:steps", 1.0, None), ("stat:loss.final", None, 7.0)]
