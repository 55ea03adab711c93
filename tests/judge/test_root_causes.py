"""Root causes fold their consequences."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradcheck.judge.judge import fold
from tests.judge.rules import finding, rule_that
from tests.literals import location


def causes(*rows):
    """`rows`: (code, severity, codes that it explains), in registry order -> code: cause."""
    rules = [rule_that([], code, code.lower(), explains=explains) for code, _, explains in rows]
    given = [replace(finding(severity), code=code) for code, severity, _ in rows if severity]
    return {f.code: f.cause for f in fold(given, rules)}


def test_a_cause_takes_what_it_explains():
    given = causes(("A001", "error", ("B001",)), ("B001", "error", ()), ("C001", "error", ()))
    assert given == {"A001": None, "B001": "A001", "C001": None}


def test_a_cause_must_be_as_severe_as_its_consequence():
    assert causes(("A001", "warning", ("B001",)), ("B001", "error", ())) == {"A001": None, "B001": None}
    assert causes(("A001", "warning", ("B001",)), ("B001", "warning", ())) == {"A001": None, "B001": "A001"}


def test_a_rule_without_a_finding_explains_nothing():
    assert causes(("A001", None, ("B001",)), ("B001", "error", ())) == {"B001": None}


def test_chains_lead_to_their_top():
    chain = causes(("A001", "warning", ()), ("B001", "error", ("A001",)), ("C001", "error", ("B001",)))
    assert chain == {"A001": "C001", "B001": "C001", "C001": None}


def test_of_rules_that_explain_each_other_the_first_is_the_cause():
    assert causes(("A001", "error", ("B001",)), ("B001", "error", ("A001",))) == {"A001": None, "B001": "A001"}


def test_a_cycle_of_three_has_one_head():
    ring = causes(("A001", "error", ("B001",)), ("B001", "error", ("C001",)), ("C001", "error", ("A001",)))
    assert ring == {"A001": None, "B001": "A001", "C001": "A001"}


@pytest.mark.parametrize(("column", "cause"), [(4, "A001"), (5, None)])
def test_what_points_at_the_same_expression_is_one_cause(column, cause):
    rules = [rule_that([], "A001", "a", explains_here=("B001",)), rule_that([], "B001", "b")]
    one, other = (replace(finding(location=location(7, column=c)), code=code) for code, c in (("A001", 4), ("B001", column)))
    assert [f.cause for f in fold([one, other], rules)] == [None, cause]


def test_the_more_severe_of_two_causes_is_taken():
    assert causes(("A001", "warning", ("C001",)), ("B001", "error", ("C001",)), ("C001", "warning", ()))["C001"] == "B001"


def test_a_milder_finding_of_a_consequence_rule_can_follow_when_the_worst_does_not():
    rules = [rule_that([], "A001", "a", explains=("B001",)), rule_that([], "B001", "b")]
    given = [replace(finding(s), code=c) for c, s in (("A001", "warning"), ("B001", "error"), ("B001", "warning"))]
    assert [f.cause for f in fold(given, rules)] == [None, None, "A001"]
