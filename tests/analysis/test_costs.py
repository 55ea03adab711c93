"""What a measured cost makes of a finding."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gradcheck.analysis.costs import comparable, costs_nothing, in_words, is_costly, learns_slowly, trains, with_cost
from gradcheck.types.finding import Finding, Remedy
from gradcheck.types.measurement import NotMeasured
from tests.literals import cost, data, measurement, optimizer, run, stalled


def finding(severity="info", code="GRAD003"):
    return Finding(code, "a-rule", severity, "what is wrong")


@pytest.mark.parametrize(
    ("loss", "changed", "expected"),
    [
        (1.89, 0.47, True),  # 0.18 of the fall where the remedy reaches 0.8
        (2.0, 1.6, True),  # both high, and less than half the fall
        (2.0, 1.8, False),  # a fall of 0.22 with the remedy, against 0.13
        (2.0, 1.9, False),  # the remedy hardly learns either
        (1.0, 0.28, True),  # over three times the loss, 0.31 of chance
        (1.0, 0.36, False),  # less than three times
        (0.70, 0.02, False),  # many times, and 0.296 of chance
        (0.72, 0.02, True),
        (math.inf, 0.5, True),
        (2.0, math.inf, False),
    ],
)
def test_how_much_is_costly(loss, changed, expected):
    assert is_costly(cost("GRAD003", loss, changed)) == expected


def test_where_the_loss_has_risen_since_the_probe_less_is_clear():
    assert not is_costly(cost("OPT005", 0.6, 0.01))
    assert is_costly(cost("OPT005", 0.6, 0.01, early=0.3))
    assert trains(cost("OPT005", 0.6, 0.6)) and not trains(cost("OPT005", 0.6, 0.6, early=0.3))


def test_the_better_of_start_and_chance_is_what_a_fall_is_measured_by():
    assert is_costly(cost("LOSS003", 2.2, 0.4, start=40.0))  # most of the way from 40 is no learning
    assert not is_costly(cost("LOSS003", 0.35, 0.1, start=1.0, chance=None))
    assert is_costly(cost("LOSS003", 0.45, 0.1, start=1.0, chance=None))


class TestSeverity:
    def judged(self, severity="info", code="GRAD003", up_to="error", **costs):
        return with_cost(finding(severity, code), measurement(costs=(cost(code, **costs),)), up_to)

    def test_a_high_cost_makes_a_warning_of_a_note(self):
        f = self.judged(loss=1.89, changed=0.47)
        assert f.severity == "warning"
        assert f.message == "what is wrong; costs: 0.47 instead of 1.89 after 300 steps (with a remedy)"
        assert f.evidence[-1].limit == 0.5 and f.evidence[-1].value == pytest.approx(0.41 / 1.83, rel=1e-3)

    def test_a_low_one_is_told_and_changes_nothing(self):
        f = self.judged(loss=1.8, changed=1.7)
        assert f.severity == "info" and f.evidence == () and "costs: 1.7 instead of 1.8" in f.message
        assert self.judged("warning", loss=1.8, changed=1.7).severity == "warning"

    @pytest.mark.parametrize(
        ("code", "changed", "expected"), [("OPT007", 2.1, "info"), ("OPT007", 1.9, "warning"), ("OPT008", 2.1, "warning")]
    )
    def test_of_the_first_steps_a_remedy_that_ends_no_lower_takes_the_warning_back(self, code, changed, expected):
        """A Bayesian net falls to 22 at the rate that is past the critical one, and to 38 at the one that is advised."""
        assert self.judged("warning", code, "warning", loss=2.0, changed=changed).severity == expected

    def test_it_never_makes_an_error_and_takes_none_back(self):
        assert self.judged("warning", loss=math.inf, changed=0.1).severity == "warning"
        assert self.judged("error", loss=1.8, changed=1.7) == finding("error")

    def test_what_alone_lets_a_failing_training_learn_is_the_error(self):
        costs = {"errors": ("OPT001",), "change": "with lecun-init"}
        remedies = Remedy("standardize-input", "scale it"), Remedy("lecun-init", "start smaller")
        warning = replace(finding("warning"), remedies=remedies)

        def judged(up_to="error", **more):
            return with_cost(warning, measurement(costs=(cost("GRAD003", **costs | more),)), up_to)

        f = judged(loss=2.29, changed=0.5)
        assert f.severity == "error" and f.confirmed == "by the probe: it fails as it is, and learns with lecun-init alone"
        assert [r.name for r in f.remedies] == ["lecun-init", "standardize-input"]
        assert judged(loss=math.inf, changed=0.5).severity == "error"
        assert judged(loss=2.0, changed=0.5).severity == "warning"  # it learns a little as it is
        assert judged(loss=2.29, changed=2.0).severity == "warning"  # and hardly more with the change
        assert judged(up_to="warning", loss=2.29, changed=0.5).severity == "warning"
        assert judged(errors=(), loss=2.29, changed=0.5).severity == "warning"

    def test_a_rule_that_only_advises_goes_on_advising(self):
        assert self.judged(loss=1.89, changed=0.47, up_to="info").severity == "info"

    def test_it_is_that_of_the_same_finding(self):
        assert with_cost(finding(), measurement(costs=(cost("GRAD003", 1.89, 0.47, layers=("rnn",)),)), "error") == finding()
        assert with_cost(finding(), measurement(costs=(cost("GRAD001", 1.89, 0.47),)), "error") == finding()

    @pytest.mark.parametrize(("code", "expected"), [("OPT005", "info"), ("GRAD003", "warning")])
    def test_a_training_that_comes_far_takes_a_prediction_back(self, code, expected):
        f = self.judged("warning", code, loss=0.02, changed=0.02, change="")
        assert f.severity == expected and ("even so the loss is 0.02 after 300 steps" in f.message) == (expected == "info")


def test_a_suspicion_is_dropped_only_when_it_was_followed_up():
    assert not costs_nothing(measurement(), "REG001")
    assert costs_nothing(measurement(costs=(cost("REG001", 1.0, 0.9),)), "REG001")
    assert not costs_nothing(measurement(costs=(cost("REG001", 1.9, 0.1),)), "REG001")


def test_what_is_compared():
    slow = measurement(probe=stalled())
    assert comparable(slow) and learns_slowly(slow) and not learns_slowly(measurement())
    assert not comparable(replace(slow, data=data(given=False)))
    assert not comparable(replace(slow, optimizer=optimizer(given=False)))
    assert not comparable(replace(slow, not_measured=(NotMeasured("probe", "one of two trainings"),)))
    assert not comparable(replace(slow, probe=run(losses=(-1.0,) * 100)))
    assert not comparable(replace(slow, probe=replace(slow.probe, surrogate="a policy gradient")))


def test_words():
    assert (
        in_words(cost("OPT005", 1.4, 0.01, early=0.2, steps=1000))
        == "costs: 0.01 instead of 1.4 after 1000 steps (with a remedy, 0.2 before)"
    )
    assert in_words(cost("REG003", 1.4, 0.1, held_out=True)).startswith("costs: held-out loss 0.1 instead of 1.4 after")
