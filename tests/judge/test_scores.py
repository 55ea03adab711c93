"""Scores by category."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import pytest

from gradcheck.analysis.statistics import CATEGORIES
from gradcheck.judge.registry import builtin_rules
from gradcheck.judge.scores import BANDS, UNSCORED, scores
from gradcheck.types.finding import SEVERITIES, Evidence, Finding, RuleState
from gradcheck.types.report import Report
from tests.literals import measurement

CODES = ("GRAD001", "CLIP001", "INIT001", "LOSS005", "NUM001")


def finding(code="GRAD001", severity="error", value=10.0, limit=1.0, comparison=">", **overrides):
    evidence = () if value is None else (Evidence("slope", value, limit, comparison),)
    return Finding(code, "name", severity, "message", evidence=evidence, **overrides)


def report(*findings, states=None):
    found = {f.code for f in findings}
    rules = [RuleState(c, "name", "finding" if c in found else "passed") for c in CODES] if states is None else states
    return Report("model.py", tuple(findings), tuple(rules), (measurement(),))


def score(name, *findings, **options):
    return next(s for s in scores(report(*findings, **options)) if s.name == name)


def test_nothing_found_is_100_everywhere():
    assert {s.value for s in scores(report())} == {100}


@pytest.mark.parametrize(
    ("severity", "value", "expected"),
    [("error", 1.0, 44), ("error", 10.0, 22), ("error", 0.1, 44), ("warning", 1.0, 85), ("warning", 10.0, 68), ("info", 1.0, 98)],
)
def test_the_severity_sets_the_band_and_the_distance_from_the_limit_the_place_in_it(severity, value, expected):
    assert score("gradients", finding(severity=severity, value=value)).value == expected


@pytest.mark.parametrize(
    ("value", "limit", "comparison", "expected"),
    [(0.1, 1.0, "<", 22), (10.0, 1.0, "<", 44), (-10.0, -1.0, "<", 22), (-0.1, -1.0, ">=", 22), (-10.0, -1.0, ">", 44)],
)
def test_the_distance_counts_on_the_faulty_side_only(value, limit, comparison, expected):
    assert score("gradients", finding(value=value, limit=limit, comparison=comparison)).value == expected


def test_a_finding_without_a_limit_counts_as_ten_times_beyond_it():
    bare = score("gradients", finding(value=None)).value
    assert bare == score("gradients", finding(value=10.0)).value == score("gradients", finding(value=5.0, limit=0.0)).value


def test_what_is_not_finite_is_infinitely_beyond():
    assert score("gradients", finding(value=math.nan)).value == score("gradients", finding(value=math.inf)).value == 0


@pytest.mark.parametrize("severity", SEVERITIES)
def test_no_number_of_findings_leaves_the_band(severity):
    low, high = BANDS[severity]
    for count, value in itertools.product((1, 2, 50), (1.0001, 1e9, math.nan)):
        assert low <= score("gradients", *[finding(severity=severity, value=value)] * count).value <= high


def test_more_findings_never_raise_a_score():
    values = [score("gradients", *[finding(severity="warning", value=1.5)] * n).value for n in range(6)]
    assert values == sorted(values, reverse=True)
    assert values[0] == 100 > values[1] > values[2]


def test_consequences_count_in_their_own_category():
    cause, consequence = finding(), finding("LOSS005", cause="GRAD001")
    assert score("data", cause, consequence).worst == "error"
    assert score("data", cause).value == 100


def test_a_category_whose_rules_came_to_no_verdict_has_no_score():
    states = [RuleState("NUM001", "a", "not-measured"), RuleState("NUM002", "b", "crashed"), RuleState("NUM003", "c", "not-applicable")]
    numerics = score("numerics", states=states)
    assert (numerics.value, numerics.judged, numerics.silent) == (None, 0, 2)


def test_a_category_none_of_whose_rules_ran_is_left_out():
    assert [s.name for s in scores(report(states=[RuleState("GRAD001", "a", "passed")]))] == ["gradients"]


def test_families_of_other_packs_get_a_category_of_their_own():
    acme = score("acme", finding("ACME001"), states=[RuleState("ACME001", "a", "finding")])
    assert (acme.title, acme.value) == ("ACME", 22)


def test_every_built_in_family_is_in_exactly_one_category():
    listed = [family for _, families in CATEGORIES.values() for family in families]
    assert sorted([*listed, *UNSCORED]) == sorted({r.family for r in builtin_rules()})


def test_the_documentation_names_the_categories():
    text = (Path(__file__).parents[2] / "docs" / "reading-a-report.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z]+)` \| ([A-Z, ]+) \|$", text, re.MULTILINE)
    assert rows == [(name, ", ".join(families)) for name, (_, families) in CATEGORIES.items()]
