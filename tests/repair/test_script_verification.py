"""What an edit has to show in a run of the edited script. Runs are literals: nothing is trained here."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.repair.script_run import ScriptRun
from gradcheck.repair.script_verification import Bench, same_loss
from gradcheck.types.finding import Finding, RuleState, Severity
from gradcheck.types.fix import Fix, Outcome
from gradcheck.types.report import Report
from tests.literals import measurement
from tests.repair.test_own_losses import course

FLAT, FALLS, FALLS_LESS, RISES = course(2.3, 2.3), course(2.3, 0.4), course(2.3, 0.7), course(2.3, 40.0)
SAME = course(2.3, 2.3, seed=1)


def run(losses: tuple[float, ...], codes: dict[str, Severity] | None = None, states: str = "passed", **overrides: Any) -> ScriptRun:
    findings = tuple(Finding(code, code.lower(), severity, "faulty") for code, severity in (codes or {}).items())
    rules = tuple(RuleState(c, c.lower(), states) for c in ("A001", "B001", "C001"))  # type: ignore[arg-type]
    report = Report("train.py", findings, rules, (measurement(),))
    values: dict[str, Any] = {"ended": True, **overrides}
    return ScriptRun([report], ("train.py",), (losses,), {"train.py": 0}, **values)


def fix(treatment: str = "cure", findings: tuple[str, ...] = ("A001",), stage: Any = "wiring") -> Fix:
    return Fix(treatment, "do it", stage, "safe", findings=findings)


def judged(before: ScriptRun, after: ScriptRun, p: Fix | None = None) -> Outcome:
    spec = ScriptSpec("train.py")
    (found,) = Bench(Settings()).judge([p or fix()], before.reports[0], (spec, before), (spec, after))
    return found.settled()


@pytest.mark.parametrize(
    ("severity", "losses", "status"),
    [
        ("error", FALLS, "kept"),
        ("error", SAME, "not-verified"),  # a rule gone silent is no proof
        ("error", RISES, "worse"),
        ("warning", FALLS, "kept"),
        ("warning", SAME, "kept"),  # of what only costs something, no more than no harm is asked
        ("warning", RISES, "worse"),
        ("error", (math.nan,) * 20, "worse"),
    ],
)
def test_the_cure_of_an_error_has_to_train_better(severity: Severity, losses: tuple[float, ...], status: str) -> None:
    assert judged(run(FLAT, {"A001": severity}), run(losses)).status == status


def test_what_no_finding_asked_for_has_to_train_better() -> None:
    assert judged(run(FLAT), run(SAME), fix(findings=())).status == "not-verified"
    assert judged(run(FLAT), run(FALLS), fix(findings=())).status == "kept"


def test_a_finding_that_stays_or_comes_or_was_not_looked_for_refutes() -> None:
    faulty = run(FLAT, {"A001": "error"})
    assert "A001 is still found" in judged(faulty, run(FALLS, {"A001": "error"})).reason
    assert judged(faulty, run(FALLS, states="not-measured")).status == "not-verified"
    worse = judged(faulty, run(FALLS, {"B001": "error"}))
    assert worse.status == "worse" and worse.new == ("B001",)
    assert judged(run(FLAT, {"A001": "error", "C001": "error"}), run(FALLS)).cured == ("A001", "C001")


def test_an_edited_script_that_fails_is_worse() -> None:
    outcome = judged(run(FALLS, {"A001": "error"}), run(FALLS, error="KeyError: 'x'"))
    assert outcome.status == "worse" and "KeyError: 'x'" in outcome.reason


def test_steps_that_are_smaller_as_they_are_meant_to_be_may_be_slower_and_still_have_to_learn() -> None:
    faulty, clearing = run(FALLS, {"A001": "error"}), fix("clear-gradients")
    outcome = judged(faulty, run(FALLS_LESS), clearing)
    assert outcome.status == "kept" and "smaller" in outcome.reason
    assert judged(faulty, run(FALLS_LESS)).status == "worse"  # no other cure may
    assert judged(faulty, run(course(2.3, 1.5)), clearing).status == "worse"
    assert judged(faulty, run(SAME), clearing).status == "worse"


def test_trainings_in_turns_need_not_fall() -> None:
    assert judged(run(FALLS, {"A001": "error"}), run(FLAT, several=True)).status == "kept"


def test_another_loss_has_to_fall_by_itself() -> None:
    faulty, other = run(course(-1.0, -9.0), {"A001": "error"}), fix("replace-loss", stage="loss")
    assert judged(faulty, run(FALLS), other).status == "kept"
    assert judged(faulty, run(course(2.3, 2.3, steps=300)), other).status == "not-verified"
    assert not same_loss([other]) and same_loss([replace(other, treatment="guard-domain")])


def test_losses_of_other_places_are_not_compared() -> None:
    two = replace(run(FALLS), losses=(FALLS, FALLS))
    assert judged(run(FLAT, {"A001": "error"}), two).status == "not-verified"
