"""Known findings: what they hide, when they fire again, when they are stale; and the file that holds them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from gradcheck.errors import ConfigError
from gradcheck.judge.baseline import KnownFinding, beyond, compare, entries, pruned, updated, with_stale
from gradcheck.judge.judge import judge_again
from gradcheck.report import baseline_file
from gradcheck.types.finding import Evidence, RuleState
from tests.literals import location
from tests.report.reports import FAULTY, FOLLOWS, INFO, PASSED, WARNING, finding, report

ROOT = Path.cwd()
GATE = RuleState("META003", "stale-baseline", "not-applicable", "no baseline")


def known(*findings, **overrides):
    return entries([report(*findings, **overrides)], ROOT)


def faulty(value, comparison=">", **fields):
    return finding(evidence=(Evidence("slope", value, 0.1, comparison),), **fields)


def left(now, *then, tolerance=0.5):
    return compare(report(*now, states=(GATE,)), known(*then), ROOT, tolerance)


def test_known_findings_go_and_take_their_consequences_along():
    compared = left([FAULTY, FOLLOWS, WARNING], FAULTY)
    assert [f.code for f in compared.report.findings] == ["ACT002"]
    assert compared.report.known == (FAULTY,) and not compared.stale
    states = {s.code: (s.status, s.reason) for s in compared.report.rules}
    assert states["GRAD001"] == ("suppressed", "known: in the baseline") and states["LOSS005"][0] == "suppressed"
    assert states["ACT002"][0] == "finding"


def test_consequences_stay_where_another_finding_of_the_cause_is_new():
    other = finding(layers=("head",), line=9)
    assert [f.code for f in left([FAULTY, other, FOLLOWS], FAULTY).report.findings] == ["GRAD001", "LOSS005"]


def test_a_known_finding_elsewhere_in_the_file_is_known_and_in_another_function_new():
    assert not left([finding(line=80, layers=("body.5",))], FAULTY).report.findings
    assert left([finding(location=location(3, scope="Net.other"))], FAULTY).report.findings


def test_two_alike_need_two_entries():
    compared = left([FAULTY, finding(line=9)], FAULTY)
    assert len(compared.report.findings) == len(compared.report.known) == 1


def test_a_finding_that_is_worse_fires_again_and_says_so():
    assert not left([faulty(0.74)], faulty(0.5)).report.findings
    (again,) = left([faulty(0.76)], faulty(0.5)).report.findings
    assert again.message.endswith("(worse than the baseline: slope 0.76, it was 0.5)")
    assert not left([faulty(0.01)], faulty(0.5)).report.findings
    (severe,) = left([finding("ACT002", "error")], finding("ACT002", "warning")).report.findings
    assert "error, it was warning" in severe.message
    assert not left([finding("ACT002", "warning")], finding("ACT002", "error")).report.findings


@pytest.mark.parametrize(
    ("new", "old", "comparison", "worse"),
    [
        (1.6, 1.0, ">", True),
        (1.4, 1.0, ">", False),
        (0.6, 1.0, "<", True),
        (0.7, 1.0, "<", False),
        (1e-9, 1e-6, "<=", True),
        (-2.0, -1.0, "<", True),
        (-1.4, -1.0, "<", False),
        (-0.4, -1.0, ">", True),
        (-0.6, -1.0, ">", False),
        (0.0, 0.0, ">", False),
        (1e-9, 0.0, ">", True),
        (math.inf, 1.0, ">", True),
        (math.inf, math.inf, ">", False),
        (math.nan, 1.0, ">", True),
        (math.nan, math.nan, ">", False),
        (1.0, math.nan, ">", False),
        (9.0, 1.0, "=", False),
    ],
)
def test_worse_is_the_faulty_side_by_more_than_half_the_stored_value(new, old, comparison, worse):
    assert beyond(Evidence("x", new, 0.1, comparison), old, 0.5) is worse


def test_entries_without_a_finding_are_stale_where_their_rule_ran():
    repaired = report(states=(replace(PASSED, code="GRAD001", name="vanishing-gradient"), GATE))
    (stale,) = compare(repaired, known(FAULTY), ROOT).stale
    assert stale.key.startswith("vanishing-gradient:model.py:")
    for status in ("not-measured", "crashed"):
        silent = report(states=(RuleState("GRAD001", "vanishing-gradient", status), GATE))
        assert compare(silent, known(FAULTY), ROOT).stale == ()
    assert compare(report(), known(FAULTY), ROOT).stale == ()
    assert compare(replace(repaired, target="other.py"), known(FAULTY), ROOT).stale == ()


def test_stale_entries_are_findings_at_their_line():
    repaired = report(states=(replace(PASSED, code="GRAD001", name="vanishing-gradient"), GATE))
    compared = compare(repaired, known(FAULTY), ROOT)
    shown = with_stale(compared, {compared.stale[0]: 4}, "b.json")
    (stale,) = shown.findings
    assert (stale.code, str(stale.location)) == ("META003", "b.json:4:1") and "baseline prune" in stale.message
    assert next(s for s in shown.rules if s.code == "META003").status == "finding"
    clean = with_stale(compare(report(states=(GATE,)), (), ROOT), {}, "b.json")
    assert not clean.findings and clean.rules == (replace(GATE, status="passed", reason=""),)
    unselected = replace(compared, report=replace(compared.report, rules=()))
    assert not with_stale(unselected, {}, "b.json").findings


def test_entries_are_headlines_that_can_fail_a_run():
    stored = entries([report(INFO, WARNING, FAULTY, FOLLOWS)], ROOT)
    assert [e.key.partition(":")[0] for e in stored] == ["dead-units", "vanishing-gradient"]
    assert len(entries([report(INFO)], ROOT, "info")) == 1


def test_updating_replaces_scanned_targets_and_keeps_what_could_not_be_decided():
    old = known(FAULTY, WARNING) + known(FAULTY, target="other.py")
    now = report(faulty(0.9), states=(RuleState("ACT002", "dead-units", "not-measured"), GATE))
    new = updated(old, [compare(now, old, ROOT)], ROOT, "warning")
    assert [(e.target, e.key.partition(":")[0], e.value) for e in new] == [
        ("model.py", "dead-units", 0.5),
        ("model.py", "vanishing-gradient", 0.9),
        ("other.py", "vanishing-gradient", 0.5),
    ]


def test_pruning_removes_only_what_is_stale():
    old = known(FAULTY, WARNING) + known(FAULTY, target="other.py")
    now = report(WARNING, states=(replace(PASSED, code="GRAD001", name="vanishing-gradient"),))
    compared = [compare(now, old, ROOT)]
    assert [(e.target, e.key[:4]) for e in pruned(old, compared)] == [("model.py", "dead"), ("other.py", "vani")]
    assert [e.target for e in pruned(old, compared, {"model.py"})] == ["model.py"]


def test_the_file_is_sorted_has_a_line_per_entry_and_no_line_numbers(tmp_path):
    path = tmp_path / "b.json"
    a, b = known(FAULTY, WARNING), known(WARNING, finding(line=1234))
    baseline_file.write(path, a)
    text = path.read_text()
    baseline_file.write(path, b)
    assert path.read_text() == text and "1234" not in text
    assert len(text.splitlines()) == 4 + len(a) + 1
    assert baseline_file.read(path) == a
    assert list(baseline_file.lines(path, a).values()) == [4, 5]
    assert json.loads(baseline_file.text(())) == {"schema_version": 1, "findings": []}


def test_numbers_that_are_not_finite_survive(tmp_path):
    entry = KnownFinding("model.py", "a:b:c:d", "error", "slope", math.inf, ">")
    baseline_file.write(tmp_path / "b.json", [entry])
    json.loads((tmp_path / "b.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert baseline_file.read(tmp_path / "b.json") == (entry,)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not JSON"),
        ("[]", "no schema_version"),
        ('{"schema_version": 1}', "no schema_version and findings"),
        ('{"schema_version": 9, "findings": []}', "schema version 9"),
        ('{"schema_version": 1, "findings": [3]}', "entry 1 is not an object"),
        ('{"schema_version": 1, "findings": [{"target": "a"}]}', "entry 1 lacks"),
        ('{"schema_version": 1, "findings": [{"target": "a", "finding": "b", "severity": "bad"}]}', "entry 1 lacks"),
        ('{"schema_version": 1, "findings": [{"target": "a", "finding": "b", "severity": "error", "value": "x"}]}', "not a number"),
    ],
)
def test_other_files_are_refused_with_a_reason(tmp_path, text, what):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(ConfigError, match=what) as error:
        baseline_file.read(tmp_path / "b.json")
    assert error.value.hint


def test_judging_again_forgets_what_was_known():
    from gradcheck.config.settings import Settings

    assert judge_again(report(known=(FAULTY,)), Settings(select=("META",))).known == ()
