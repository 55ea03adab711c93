"""The judge: states of rules, agreement of seeds, overrides, suppression, order."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gradcheck.config.settings import RuleSettings, Settings
from gradcheck.judge.judge import judge, judge_again
from gradcheck.judge.suppress import unused_ignore
from gradcheck.types.location import Ignore
from gradcheck.types.measurement import NotMeasured
from gradcheck.types.report import Report
from gradcheck.types.rule import not_applicable, not_measured
from tests.judge.rules import above, finding, number, rule_that
from tests.literals import location, loop, measurement, run

M = measurement()


def states(rules, measurements=(M,), settings=None):
    return {s.name: (s.status, s.reason) for s in judge(measurements, rules, settings or Settings())[2]}


def findings(rules, measurements=(M,), settings=None):
    return judge(measurements, rules, settings or Settings())[0]


def test_a_rule_is_in_one_of_five_states():
    rules = [
        rule_that([finding()], "A001", "faulty"),
        rule_that([], "A002", "healthy"),
        rule_that(not_applicable("no ReLU"), "A003", "elsewhere"),
        rule_that(not_measured("no gradients"), "A004", "unseen"),
        rule_that(lambda m, limits: 1 / 0, "A005", "broken"),
    ]
    seen = states(rules)
    assert seen["faulty"] == ("finding", "")
    assert seen["healthy"] == ("passed", "")
    assert seen["elsewhere"] == ("not-applicable", "no ReLU")
    assert seen["unseen"] == ("not-measured", "no gradients")
    assert seen["broken"][0] == "crashed"
    assert "ZeroDivisionError: division by zero (test_judge.py, line" in seen["broken"][1]


def test_a_finding_gets_the_code_and_name_of_its_rule():
    (found,) = findings([rule_that([finding(message="m")], "A001", "faulty")])
    assert (found.code, found.name, found.message) == ("A001", "faulty", "m")


def test_a_rule_that_exceeds_its_severity_has_crashed_and_others_have_not():
    rules = [
        rule_that([finding(s)], code, name, up_to="warning") for s, code, name in (("error", "A001", "loud"), ("warning", "A002", "fair"))
    ]
    assert [f.name for f in findings(rules)] == ["fair"]
    assert states(rules)["loud"] == ("crashed", states(rules)["loud"][1])
    assert "it may give 'warning' at most" in states(rules)["loud"][1]


def test_what_was_not_measured_is_not_passed():
    m = measurement(not_measured=(NotMeasured("probe", "the budget was spent"), NotMeasured("layer x", "scripted")))
    rules = [rule_that([], "A001", "needs-probe", needs=("probe",)), rule_that([], "A002", "needs-data", needs=("data",))]
    assert states(rules, [m]) == {
        "needs-probe": ("not-measured", "the course of the training: the budget was spent"),
        "needs-data": ("passed", ""),
    }


def test_limits_and_severity_follow_the_settings():
    m = measurement(probe=run([0.8, 0.1]))
    assert findings([above(0.5)], [m])
    milder = Settings(rules={"test-rule": RuleSettings("info", {"start": 0.9})})
    assert not findings([above(0.5)], [m], milder)
    by_code = Settings(rules={"TEST001": RuleSettings("warning")})
    assert findings([above(0.5)], [m], by_code)[0].severity == "warning"


def seeds(*starts):
    return [measurement(seed=i, probe=run([s, 0.1])) for i, s in enumerate(starts)]


def test_a_finding_counts_when_more_than_half_of_the_seeds_show_it():
    assert not findings([above(0.5)], seeds(0.6, 0.4))
    assert not findings([above(0.5)], seeds(0.6, 0.4, 0.4))
    (found,) = findings([above(0.5)], seeds(0.6, 0.4, 0.9))
    assert states([above(0.5)], seeds(0.6, 0.4, 0.4))["test-rule"] == ("passed", "")
    assert found.evidence[0].spread == (0.6, 0.9)


def test_numbers_are_medians_over_the_seeds():
    (found,) = findings([above(0.5)], seeds(0.6, 3.0, 0.7))
    assert found.evidence[0].value == pytest.approx(0.7)
    assert found.evidence[0].spread == (0.6, 3.0)


def by_seed(*severities):
    """A rule that gives seed i a finding of the i-th severity."""
    return rule_that(lambda m, limits: [finding(severities[m.seed], message=f"seed {m.seed}")] if severities[m.seed] else [])


@pytest.mark.parametrize(
    ("given", "agreed"),
    [
        (("error", "error", "warning"), "error"),
        (("error", "warning", "warning"), "warning"),
        (("error", "info", "warning"), "warning"),
        (("error", "warning", None), "warning"),
        (("error", None, None), None),
    ],
)
def test_seeds_agree_on_the_severity_that_most_reach(given, agreed):
    found = findings([by_seed(*given)], seeds(1.0, 1.0, 1.0))
    assert [f.severity for f in found] == ([agreed] if agreed else [])
    assert all(given[int(f.message[-1])] == agreed for f in found), "the message is of a seed with that severity"


def test_findings_of_seeds_are_matched_by_place_and_without_one_by_layers():
    def check(m, limits):
        return [finding(location=location(10 + m.seed)), finding(layers=("a", f"only{m.seed}"))]

    (found,) = findings([rule_that(check)], seeds(1.0, 1.0, 1.0))
    assert found.location is None and found.layers[0] == "a"


def test_a_crash_with_one_seed_does_not_hide_what_the_others_found():
    def check(m, limits):
        if m.seed == 2:
            raise ValueError("odd")
        return [finding()]

    assert len(findings([rule_that(check)], seeds(1.0, 1.0, 1.0))) == 1
    status, reason = states([rule_that(check)], seeds(1.0, 1.0, 1.0))["test-rule"]
    assert status == "finding" and "crashed with another seed: ValueError: odd" in reason


def test_a_crash_with_one_seed_is_not_a_pass():
    def check(m, limits):
        return [] if m.seed else [1 / 0]

    assert states([rule_that(check)], seeds(1.0, 1.0, 1.0))["test-rule"][0] == "crashed"


def test_findings_of_one_rule_at_one_place_are_one_with_the_worst_number():
    made = [finding("warning", f"{v}", layers=(f"layers.{v}",), location=location(7), evidence=(number(v),)) for v in (2.0, 5.0, 3.0)]
    (found,) = findings([rule_that(made)])
    assert found.layers == ("layers.2.0", "layers.5.0", "layers.3.0")
    assert found.message == "5.0" and found.evidence[0].value == 5.0


def test_findings_without_a_place_are_not_merged():
    assert len(findings([rule_that([finding(layers=("a",)), finding(layers=("b",))])])) == 2


def test_most_severe_first_then_headlines_then_registry_order():
    rules = [
        rule_that([finding("warning")], "A001", "warns"),
        rule_that([finding("error")], "B001", "follows"),
        rule_that([finding("error")], "C001", "causes", explains=("B001",)),
        rule_that([finding("error")], "D001", "stands", up_to="error"),
    ]
    assert [f.name for f in findings(rules)] == ["causes", "stands", "follows", "warns"]


HERE = rule_that([finding(location=location(10, end_line=12))], "ACT002", "dead-units")


@pytest.mark.parametrize("word", ["dead-units", "ACT002", "ACT", "act002"])
@pytest.mark.parametrize("line", [10, 12])
def test_a_comment_at_the_expression_suppresses(word, line):
    m = measurement(ignores=(Ignore("model.py", line, (word,), line),))
    kept, suppressed, ran = judge([m], [HERE], Settings())
    assert not kept and suppressed[0].name == "dead-units"
    assert ran[0].status == "suppressed"


@pytest.mark.parametrize(
    ("path", "line", "word"), [("model.py", 9, "dead-units"), ("model.py", 10, "other"), ("other.py", 10, "dead-units")]
)
def test_a_comment_elsewhere_or_for_another_rule_does_not(path, line, word):
    assert findings([HERE], [measurement(ignores=(Ignore(path, line, (word,), line),))])


def test_an_ignore_comment_without_effect_is_found_at_its_line():
    m = measurement(ignores=(Ignore("model.py", 20, ("test-rule",), 19), Ignore("model.py", 21, ("test-rule",), 19)))
    (found,) = findings([rule_that([]), unused_ignore], [m])
    assert (found.code, found.severity, found.location.line) == ("META001", "info", 19)
    assert "test-rule" in found.message


def test_an_ignore_comment_with_effect_is_not():
    m = measurement(ignores=(Ignore("model.py", 10, ("dead-units",), 10),))
    assert not findings([HERE, unused_ignore], [m])


@pytest.mark.parametrize("rule", [rule_that(not_measured("no time")), rule_that(lambda m, limits: 1 / 0), rule_that([], "B001", "another")])
def test_a_comment_is_not_called_unused_when_its_rule_came_to_no_verdict(rule):
    m = measurement(ignores=(Ignore("model.py", 10, ("test-rule",), 10),))
    assert not findings([rule, unused_ignore], [m])


def test_ignored_layers_leave_a_finding_and_the_last_one_takes_it_away():
    rule = rule_that([finding(layers=("encoder.embed", "head"))])
    (found,) = findings([rule], settings=Settings(per_layer_ignores={"encoder.*": ("test-rule",)}))
    assert found.layers == ("head",)
    kept, suppressed, ran = judge([M], [rule], Settings(per_layer_ignores={"encoder.*": ("TEST",), "head": ("ALL",)}))
    assert not kept and len(suppressed) == 1 and ran[0].status == "suppressed"


def test_layers_ignored_for_another_rule_stay():
    rule = rule_that([finding(layers=("head",))])
    assert findings([rule], settings=Settings(per_layer_ignores={"head": ("another",)}))


def test_a_finding_about_no_layer_is_not_ignored_by_layer():
    assert findings([rule_that([finding()])], settings=Settings(per_layer_ignores={"*": ("ALL",)}))


def saved(rules, m=M):
    found, suppressed, ran = judge([m], rules, Settings())
    return Report("t", found, ran, (m,), suppressed)


def test_judging_again_uses_the_new_limits(monkeypatch):
    rules = (above(0.5),)
    monkeypatch.setattr("gradcheck.judge.registry.load_rules", lambda paths: rules)
    monkeypatch.setattr("gradcheck.judge.select.load_rules", lambda paths: rules)
    first = saved(rules, measurement(probe=run([0.8, 0.1])))
    assert len(first.findings) == 1
    again = judge_again(first, Settings(rules={"test-rule": RuleSettings(None, {"start": 0.9})}))
    assert not again.findings and again.rules[0].status == "passed"
    assert again.measurements == first.measurements


def test_judging_again_does_not_pass_rules_whose_quantities_were_not_measured(monkeypatch):
    wanted = (("A001", "old", "signals"), ("A002", "new", "probe"), ("A003", "able", "signals"))
    rules = tuple(rule_that([], code, name, needs=(need,)) for code, name, need in wanted)
    for module in ("registry", "select"):
        monkeypatch.setattr(f"gradcheck.judge.{module}.load_rules", lambda paths: rules)
    again = judge_again(saved(rules[:1]), Settings())
    assert {s.name: s.status for s in again.rules} == {"old": "passed", "new": "not-measured", "able": "passed"}
    assert "without looking at the course of the training" in again.rules[1].reason


def test_the_judge_changes_no_measurement():
    before = replace(M)
    findings([HERE, unused_ignore])
    assert before == M


@pytest.mark.parametrize(
    ("facts", "confirmed", "severity"),
    [
        ({}, "by the probe: it diverges", "warning"),
        ({"ended": "exit"}, "by the probe: it diverges", "warning"),
        ({}, "by the measured value alone", "error"),
        ({"ended": "stopped"}, "by the probe: it diverges", "error"),
        ({"steps": 2, "backwards": 2, "losses": (2.3, 2.3)}, "by the probe: it diverges", "error"),
        ({"backwards": 20}, "by the probe: it diverges", "error"),  # one step of LBFGS
        ({"losses": (math.nan,)}, "by the probe: it diverges", "error"),
        ({"skipped": 1}, "by the probe: it diverges", "warning"),  # cleared once more, after its step
        ({"skipped": 29}, "by the probe: it diverges", "error"),  # rounds of which the script leaves out the step
    ],
)
def test_what_more_steps_would_come_to_is_no_error_of_a_script_that_takes_one(facts, confirmed, severity):
    facts = {"steps": 1, "backwards": 1, "losses": (2.3,), "ended": "end"} | facts
    m = measurement(loop=loop(**facts), probe=run([2.3, math.nan], ended="non-finite"))
    (found,) = findings([rule_that([finding("error", confirmed=confirmed)], "A001", "faulty")], [m])
    assert found.severity == severity
    assert ("takes only one step" in found.message) == (severity == "warning") == (not found.confirmed)
