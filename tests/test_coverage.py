"""What "judged in part" means: a pure function of the report, and the exit code that follows from it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest

from gradcheck.analysis.gaps import gaps
from gradcheck.cli.gate import exit_code
from gradcheck.config.settings import Settings, settings_from
from gradcheck.errors import ConfigError
from gradcheck.judge.judge import judge, judge_again
from gradcheck.judge.scores import scores
from gradcheck.saved_run import dumps, load
from gradcheck.types.finding import RuleState
from gradcheck.types.loop import LoopFacts
from gradcheck.types.measurement import Lack, NotMeasured
from gradcheck.types.report import Report, coverage
from gradcheck.types.rule import LOOKS, Need
from tests.judge.rules import finding, rule_that
from tests.literals import healthy_layers, layer, measurement, parameter, run
from tests.report.reports import FAILED, FAULTY, IN_PART, WARNING, report


def states(passed: int, silent: int, lacking: str = "probe") -> tuple[RuleState, ...]:
    looked = tuple(RuleState(f"A{i:03}", f"fine-{i}", "passed") for i in range(passed))
    return (*looked, *(RuleState(f"B{i:03}", f"silent-{i}", "not-measured", "why", lacking) for i in range(silent)))


def lacking(lack: Lack = "failed", what: str = "probe", why: str = "why"):
    return measurement(not_measured=(NotMeasured(what, why, lack, "do this"),))


@pytest.mark.parametrize(("passed", "silent", "in_part"), [(6, 2, False), (5, 2, True), (0, 1, True), (3, 1, False), (4, 0, False)])
def test_more_than_a_quarter_of_the_applicable_rules_failed_to_look(passed, silent, in_part):
    found = coverage(states(passed, silent), [lacking()])
    assert (found.in_part, found.looked, found.applicable) == (in_part, passed, passed + silent)
    assert found.silent == tuple(f"silent-{i}" for i in range(silent))


@pytest.mark.parametrize(("lack", "in_part"), [("failed", True), ("short", True), ("unsuited", False), ("left-out", False)])
def test_what_the_user_left_out_and_what_the_model_has_not_is_no_failure(lack, in_part):
    assert coverage(states(2, 6), [lacking(lack)]).in_part is in_part
    assert coverage(states(2, 6), [measurement()]).in_part is False, "measured, but not for this saved run"


def test_rules_that_say_so_themselves_and_crashed_ones_did_not_look():
    assert coverage(states(2, 1, lacking=""), [measurement()]).in_part
    assert not coverage(states(2, 1, lacking=""), [measurement(probe=run(live=True))]).in_part, "watching sees no more"
    assert coverage(states(2, 1), [replace(lacking(), probe=run(live=True))]).in_part
    crashed = tuple(RuleState(f"C{i}", f"broken-{i}", "crashed", "ValueError") for i in range(2))
    found = coverage((*states(5, 0), *crashed), [measurement()])
    assert found.in_part and found.reasons == ("2 rules crashed: broken-0, broken-1",)
    assert not coverage((*states(6, 0), *crashed), [measurement()]).in_part


def test_rules_that_do_not_apply_or_are_about_the_project_do_not_count():
    others = (RuleState("D001", "elsewhere", "not-applicable", "no ReLU"), *(RuleState(f"META00{i}", "gate", "passed") for i in range(9)))
    found = coverage((*states(1, 1), *others), [lacking()])
    assert found.in_part and (found.looked, found.applicable) == (1, 2)


def test_reasons_are_those_that_kept_rules_from_looking_the_weightiest_first():
    m = measurement(
        not_measured=(
            NotMeasured("layer fc1", "scripted"),
            NotMeasured("samples", "no time was left", remedy="--budget"),
            NotMeasured("probe", "it raised"),
            NotMeasured("derivatives", "left out by --fast", "left-out"),
        )
    )
    found = coverage((*states(0, 3), *states(0, 1, "samples")), [m, m])
    assert found.reasons == ("it raised", "no time was left") and found.remedies == ("--budget",)


def test_the_exit_code_is_2_unless_findings_make_it_1_or_it_is_allowed():
    assert [IN_PART.exit_code(level) for level in ("error", "warning", "info", "never")] == [2, 2, 2, 2]
    assert IN_PART.exit_code(allow_partial=True) == 0 and FAILED.exit_code() == 1
    assert [FAILED.exit_code(level, allow_partial=True) for level in ("error", "never")] == [1, 0]
    assert FAILED.exit_code("never") == 2 and report(FAULTY).exit_code("never") == 0
    with pytest.raises(ValueError, match="fail_on"):
        IN_PART.exit_code("fatal")


@pytest.mark.parametrize(
    ("found", "settings", "options", "code"),
    [
        ([IN_PART], {}, {}, 2),
        ([report(), IN_PART], {"allow-partial": True}, {}, 0),
        ([report(FAULTY), IN_PART], {}, {}, 1),
        ([report(WARNING), IN_PART], {"max-warnings": 0}, {}, 1),
        ([FAILED], {}, {"exit_zero": True}, 2),
        ([FAILED], {"allow-partial": True}, {"exit_zero": True}, 0),
        ([FAILED], {"allow-partial": True}, {}, 1),
    ],
)
def test_the_gate(found, settings, options, code):
    assert exit_code(found, settings_from(settings), **options) == code


def test_the_key_is_true_or_false():
    with pytest.raises(ConfigError, match="allow-partial must be true or false"):
        settings_from({"allow-partial": "yes"})


def test_a_saved_run_says_it_and_is_judged_the_same_again(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(dumps(IN_PART))
    said = json.loads(path.read_text())["coverage"]
    assert said["in_part"] is True and (said["looked"], said["applicable"]) == (1, 3)
    assert said["reasons"] == ["could not repeat the training step"] and said["silent"] == ["vanishing-gradient", "dead-units"]
    assert load(path).coverage == IN_PART.coverage
    blind = report(states=(RuleState("GRAD001", "vanishing-gradient", "passed"),), measurements=IN_PART.measurements)
    again = judge_again(blind, Settings(select=("GRAD001",)))
    assert again.coverage.in_part and not judge_again(report(), Settings(select=("LOSS001",))).coverage.in_part


def test_a_category_that_was_judged_in_part_has_no_score():
    by_name = {s.name: s.value for s in scores(IN_PART)}
    assert by_name["gradients"] is None and {s.name: s.value for s in scores(report(states=states(1, 0)))}["a"] == 100


# --------------------------------------------------------------------------- where it comes from


def verdict_of(verdict, lack: Lack, need: Need = "probe"):
    rule = rule_that(verdict, "A001", "a-rule", needs=(need,))
    found, _, (state,) = judge([lacking(lack)], [rule], Settings())
    return found, state


def test_after_too_short_a_look_findings_stand_and_silence_is_no_verdict():
    found, state = verdict_of([finding()], "short")
    assert len(found) == 1 and state.status == "finding"
    found, state = verdict_of([], "short")
    assert not found and (state.status, state.lacking) == ("not-measured", "probe")
    assert state.reason == "the course of the training: why"
    assert verdict_of([finding()], "failed")[1].status == "not-measured"
    assert verdict_of([], "short", "data")[1].status == "passed"


def test_every_need_has_words():
    assert set(LOOKS) == set(get_args(Need))
    assert len(set(LOOKS.values())) == len(LOOKS)


FLAT = [2.3 + 0.001 * (i % 3) for i in range(12)]


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        (run(FLAT, ended="budget"), [("probe", "short")]),
        (run(FLAT, ended="done"), []),  # the user's own number of steps
        (run([2.3 * 0.95**i for i in range(12)], ended="budget"), []),  # it learns
        (run([2.3 * 0.995**i for i in range(12)], ended="budget"), [("probe", "short")]),
        (run([], ended="raised"), [("probe", "failed")]),
    ],
)
def test_a_training_that_time_cut_off_before_it_learned_is_too_short(probe, told):
    found = list(gaps(measurement(probe=probe), 100, 30.0))
    assert [(n.what, n.lack) for n in found] == told
    if told and probe.losses:
        assert "after 12 of 100 steps" in found[0].why and "30 s" in found[0].remedy


def test_a_training_that_is_explained_already_is_not_told_twice():
    m = measurement(probe=run([], ended="raised"), not_measured=(NotMeasured("probe", "the loss raised an error"),))
    assert not list(gaps(m, 100, 30.0))


def test_no_layer_was_seen_although_modules_hold_parameters():
    inside, own = (parameter("fc1.weight"),), (parameter("w", layer=""),)
    blind = list(gaps(measurement(layers=(layer("", "container"),), parameters=inside), 100, 30.0))
    assert [(n.what, n.lack) for n in blind] == [("signals", "failed"), ("units", "failed"), ("similarity", "failed")]
    assert not list(gaps(measurement(layers=(), parameters=own), 100, 30.0)), "a model without layers has none to be seen"
    assert not list(gaps(measurement(layers=healthy_layers()), 100, 30.0))


def test_of_several_seeds_one_that_looked_is_enough():
    rule = rule_that([], "A001", "a-rule", needs=("probe",))
    ms = [lacking("short"), measurement(seed=1)]
    _, _, found = judge(ms, [rule], Settings())
    assert found[0].status == "passed" and not Report("x", (), found, tuple(ms)).coverage.in_part


@pytest.mark.parametrize(("ended", "steps", "in_part"), [("budget", 2, True), ("budget", 3, False), ("end", 2, False)])
def test_a_loop_that_had_no_time_for_a_few_steps_is_judged_in_part(ended, steps, in_part):
    found = coverage(states(8, 0), [measurement(loop=LoopFacts("o", steps, steps, ended))])
    assert found.in_part is in_part and found.remedies == (("raise --budget",) if in_part else ())
    assert not in_part or found.reasons == ("its budget ran out after 2 steps of the script: its loop was not seen",)
