"""JUnit: read back with junitparser."""

from __future__ import annotations

from dataclasses import replace

from junitparser import Error, Failure, JUnitXml, Skipped

from gradcheck.report import listings
from tests.report.reports import CLEAN, FULL_OF_HOSTILITY, IN_PART, MIXED, VIEW


def parsed(*reports, **view):
    return JUnitXml.fromstring(listings.junit(reports, replace(VIEW, **view)).encode())


def cases(xml):
    return {case.name.partition(" ")[0]: case for suite in xml for case in suite}


def kinds(xml):
    return {name: [type(r) for r in case.result] for name, case in cases(xml).items()}


def test_a_test_case_per_rule_with_its_state():
    assert kinds(parsed(MIXED)) == {
        "vanishing-gradient": [Failure],
        "loss-not-falling": [Failure],
        "dead-units": [],
        "unscaled-input": [],
        "saturated-activation": [],
        "batchnorm-small-batch": [Skipped],
        "uninformative-features": [Error],
    }


def test_failures_are_what_fails_the_run():
    def failures(level):
        return sum(kind == [Failure] for kind in kinds(parsed(MIXED, fail_on=level)).values())

    assert [failures(level) for level in ("error", "warning", "info", "never")] == [2, 3, 4, 0]


def test_a_run_in_part_is_an_error_unless_that_is_allowed():
    xml = parsed(IN_PART)
    assert kinds(xml)["judged-in-part"] == [Error] and xml.errors == 1
    error = cases(xml)["judged-in-part"].result[0]
    assert error.message == "judged in part: 1 of 3 applicable rules looked" and "help: watch it" in error.text
    assert kinds(parsed(IN_PART, allow_partial=True))["judged-in-part"] == [Skipped]
    assert "judged-in-part" not in kinds(parsed(CLEAN))


def test_counts_agree_with_the_cases():
    xml = parsed(MIXED, CLEAN)
    assert [suite.name for suite in xml] == ["model.py", "model.py"]
    assert (xml.tests, xml.failures, xml.errors, xml.skipped) == (9, 2, 1, 2)
    suite = next(iter(xml))
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (7, 2, 1, 1)
    suite.update_statistics()
    assert (suite.tests, suite.failures, suite.errors, suite.skipped) == (7, 2, 1, 1)


def test_texts_hold_place_number_help_and_cause():
    faulty = cases(parsed(MIXED))["vanishing-gradient"]
    failure = faulty.result[0]
    assert failure.type == "error" and failure.message == "GRAD001 is faulty"
    for text in ("model.py:3:20: error", "slope = 0.5 decades", "help: initialise it", "follows: loss-not-falling"):
        assert text in failure.text
    assert (faulty._elem.get("file"), faulty._elem.get("line")) == ("model.py", "3")
    assert "GRAD001: LOSS005 is faulty" in cases(parsed(MIXED))["loss-not-falling"].result[0].text
    assert "dead-units" in cases(parsed(MIXED)) and "ACT002 is faulty" in cases(parsed(MIXED))["dead-units"].system_out
    assert cases(parsed(MIXED))["batchnorm-small-batch"].result[0].message == "not applicable: no batch normalization"


def test_hostile_text_stays_text():
    case = cases(parsed(FULL_OF_HOSTILITY, fail_on="warning"))["dead-units"]
    assert len(case.result) == 1
    assert "</script><b onload=x> ]]>" in case.result[0].message and "\\x1b[31m\\x00\\ud800" in case.result[0].message
