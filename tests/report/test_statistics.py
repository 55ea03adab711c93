"""Findings by rule over many targets."""

from __future__ import annotations

from dataclasses import replace

from gradcheck.report.listings import statistics
from tests.report.reports import CLEAN, IN_PART, finding, report


def test_rules_are_counted_over_targets_the_worst_and_most_frequent_first():
    many = [replace(report(finding("ACT002", "warning"), finding("ACT002", "info", line=9)), target=f"m{i}.py") for i in range(9)]
    lines = statistics([*many, report(finding()), CLEAN]).splitlines()
    assert lines[0].split() == ["1", "error", "vanishing-gradient", "GRAD001", "model.py"]
    assert lines[1].split()[:4] == ["18", "warning", "dead-units", "ACT002"] and lines[1].endswith("m5.py and 3 more")
    assert lines[2:] == ["19 findings in 10 of 11 targets"]


def test_consequences_do_not_count_and_what_was_judged_in_part_is_said():
    assert statistics([report(finding(), finding("LOSS005", cause="GRAD001"))]).splitlines()[1:] == ["1 finding in 1 of 1 target"]
    assert statistics([CLEAN, IN_PART]).endswith("of 2 targets; 1 judged in part\n")
