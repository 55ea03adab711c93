"""Who enters: named remedies, what findings propose, what is usual; and at which strengths."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradcheck.pipeline import scan_workload
from gradcheck.remedies.catalogue import CATALOGUE
from gradcheck.remedies.definition import Strength
from gradcheck.trials.candidates import FIRST_STRENGTHS, USUAL, USUAL_FOR, entries, neighbours, scheduled
from gradcheck.types.finding import Finding, Remedy
from gradcheck.types.report import Report
from tests.trials.problems import classes


@pytest.fixture(scope="module")
def report():
    from gradcheck.config.settings import settings_from

    return scan_workload(classes().workload(), replace(settings_from(None), fast=True))


def finding(*remedies):
    return Finding("X001", "x", "error", "faulty", (), None, (), tuple(Remedy(r, r, "safe") for r in remedies))


def test_every_usual_remedy_is_in_the_vocabulary():
    names = {*USUAL, *(name for found in USUAL_FOR.values() for name in found)}
    assert not {name for name in names if name not in CATALOGUE or CATALOGUE[name].apply is None}


def test_what_the_findings_propose_comes_first(report):
    faulty = Report(report.target, (finding("orthogonal-init", "smaller-batch"),), (), report.measurements)
    names = list(dict.fromkeys(c.name for c in entries(faulty, "classification")))
    assert names[0] == "orthogonal-init" and "smaller-batch" not in names and {"dropout", "l1", "early-stopping", "mixup"} <= set(names)


def test_named_remedies_enter_alone_and_those_that_do_not_fit_say_so(report):
    found = entries(report, "classification", ["qk-norm", "dropout"])
    assert found[0].name == "qk-norm" and found[0].inapplicable and "does not fit" in found[0].failure
    assert {c.name for c in found[1:]} == {"dropout"}


def test_a_remedy_enters_as_proposed_and_at_other_strengths(report):
    rates = [(c.fixes[0].settings["rate"], c.variant) for c in entries(report, "classification", ["dropout"])]
    assert rates[0] == (0.2, False) and all(variant for _, variant in rates[1:]) and len(rates) == 3
    penalties = [c for c in entries(report, "classification", ["l1"]) if not c.variant]
    assert [c.fixes[0].settings["strength"] for c in penalties] == list(FIRST_STRENGTHS)
    unit = penalties[0].fixes[0].settings["unit_l1"]
    assert penalties[1].fixes[0].settings["l1"] == pytest.approx(0.03 * unit)


def test_a_lower_rate_is_lower_at_every_strength(report):
    rates = [c.fixes[0].settings["lr"] for c in entries(report, "classification", ["lower-learning-rate"])]
    assert rates and max(rates) < report.measurement.optimizer.lr


def test_neighbours_stay_in_their_range():
    assert neighbours(Strength("a", 1.0, 0.5, 100.0), 1.0) == [0.5, 2.4]
    assert neighbours(Strength("p", 0.2, 0.0, 0.8, log=False), 0.2) == [0.0, 0.4]
    assert neighbours(Strength("c", 1.0, 1e-3, 1e3), 1.0, both=False) == [0.1, 0.01]


def test_schedules_end_with_the_runs(report):
    (cosine,) = [scheduled(c, 321) for c in entries(report, "classification", ["cosine-schedule"])]
    (stairs,) = [scheduled(c, 321) for c in entries(report, "classification", ["step-schedule"])]
    assert (cosine.fixes[0].settings["steps"], stairs.fixes[0].settings["steps"]) == (321, 107)
