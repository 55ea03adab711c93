"""Choosing rules by name, code, family and ALL; settings that name no rule or limit."""

from __future__ import annotations

import pytest

from gradcheck.config.settings import RuleSettings, Settings
from gradcheck.errors import ConfigError
from gradcheck.judge.select import check_rule_settings, needs, select
from gradcheck.types.rule import Limit
from tests.judge.rules import rule_that

RULES = (
    rule_that([], "GRAD001", "vanishing-gradient", needs=("signals", "probe"), limits={"warning_slope": Limit(0.1, "", "s")}),
    rule_that([], "GRAD002", "exploding-gradient", needs=("signals",)),
    rule_that([], "ACT002", "dead-units", needs=("units",)),
)


def names(**words):
    return [r.name for r in select(RULES, **words)]


def test_all_rules_run_by_default():
    assert names() == ["vanishing-gradient", "exploding-gradient", "dead-units"]


@pytest.mark.parametrize("word", ["vanishing-gradient", "GRAD001", "grad001", "Vanishing-Gradient"])
def test_a_rule_is_selected_by_name_or_code(word):
    assert names(select=[word]) == ["vanishing-gradient"]


def test_a_family_is_selected():
    assert names(select=["GRAD"]) == ["vanishing-gradient", "exploding-gradient"]


def test_extend_select_adds():
    assert names(select=["ACT"], extend_select=["GRAD002"]) == ["exploding-gradient", "dead-units"]


def test_ignore_removes():
    assert names(ignore=["GRAD", "dead-units"]) == []


def test_the_narrower_selector_wins_and_of_equals_ignore():
    assert names(ignore=["GRAD"], extend_select=["GRAD001"]) == ["vanishing-gradient", "dead-units"]
    assert names(select=["GRAD"], ignore=["ALL"]) == ["vanishing-gradient", "exploding-gradient"]
    assert names(select=["GRAD001"], ignore=["vanishing-gradient"]) == []


@pytest.mark.parametrize(("word", "hint"), [("vanishing-gradeint", "vanishing-gradient"), ("GRAD01", "GRAD001"), ("GRADD", "GRAD")])
def test_an_unknown_selector_is_an_error_with_a_suggestion(word, hint):
    with pytest.raises(ConfigError) as e:
        names(select=[word])
    assert repr(word) in e.value.message
    assert f'did you mean "{hint}' in e.value.hint and "gradcheck rules" in e.value.hint


def test_needs_are_the_union():
    assert needs(RULES) == {"signals", "probe", "units"}


def test_settings_of_known_rules_and_limits_are_accepted():
    check_rule_settings(RULES, Settings(rules={"GRAD001": RuleSettings("info", {"warning_slope": 0.2})}, per_layer_ignores={"*": ("ACT",)}))


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (Settings(rules={"dead-unit": RuleSettings()}), "[tool.gradcheck.rules.dead-unit]", 'did you mean "dead-units"'),
        (Settings(rules={"GRAD001": RuleSettings(None, {"warning_slop": 1.0})}), "no limit 'warning-slop'", 'did you mean "warning-slope"'),
        (Settings(rules={"dead-units": RuleSettings(None, {"share": 1.0})}), "no limit 'share'", "no limits to set"),
        (Settings(per_layer_ignores={"head": ("ACT009",)}), 'per-layer-ignores of "head"', "ACT002"),
    ],
)
def test_settings_that_name_nothing_are_errors(settings, message, hint):
    with pytest.raises(ConfigError) as e:
        check_rule_settings(RULES, settings)
    assert message in e.value.message and hint in e.value.hint
