"""What the sections say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from gradcheck.judge.registry import builtin_rules
from gradcheck.report.html import render
from gradcheck.report.html.findings import evidence_table, findings, proof
from gradcheck.report.html.markup import page_html
from gradcheck.report.html.method import method, states
from gradcheck.report.html.trial import curve_axis, trial
from gradcheck.report.html.verdict import gauges, sentence, verdict
from gradcheck.types.finding import Evidence, RuleState
from gradcheck.types.measurement import Assumption, NotMeasured
from gradcheck.types.report import Report
from gradcheck.types.training import LogFacts
from gradcheck.types.trial import Curve
from tests.literals import location, measurement
from tests.report.html.pages import Page, deep, faulty, healthy, treated
from tests.report.reports import FAILED, IN_PART

FAST = measurement(not_measured=(NotMeasured("probe", "left out by --fast", "left-out"),))


def tree(markup):
    return Page(markup).root


def report(*found, rules=None):
    return Report("model.py", found, rules if rules is not None else (RuleState("GRAD001", "a", "passed"),), (measurement(),))


def test_the_verdict_is_that_of_the_most_severe_finding_about_the_training():
    gate = replace(faulty("META002", "error", evidence=()), name="failed-assertion")
    assert "predicted to fail" in sentence(report(faulty()))
    assert "at a cost" in sentence(report(faulty(severity="warning"), gate))
    assert sentence(report()) == sentence(report(gate)) == "Nothing that was measured keeps this model from training well"
    left_out = replace(report(rules=(RuleState("GRAD001", "a", "not-measured", "--fast", "probe"),)), measurements=(FAST,))
    assert sentence(left_out) == "No rule came to a verdict"
    read = replace(report(faulty(severity="warning")), measurements=(measurement(log=LogFacts("CSV")),))
    assert sentence(read) == "This run trained, at a cost", "a log tells of what is over"
    unseen = report(rules=(RuleState("GRAD001", "a", "not-measured", "time"),))
    assert sentence(unseen) == "Judged in part: that nothing more was found proves nothing"


def test_a_run_in_part_has_a_box_with_why_and_what_to_do():
    top = tree(verdict(IN_PART, "r0-"))
    (box,) = top.all(class_="in-part")
    assert "1 of 3 applicable rules looked" in box.words and "could not repeat the training step" in box.words and "watch it" in box.words
    assert "predicted to fail" in sentence(FAILED) and tree(verdict(FAILED, "r0-")).all(class_="in-part")
    assert not tree(verdict(report(), "r0-")).all(class_="in-part")


def test_headlines_link_to_their_findings_and_assumptions_are_told():
    m = measurement(assumptions=(Assumption("loss", "no loss given: `cross_entropy`"), Assumption("data", "8 batches", given=True)))
    top = tree(verdict(replace(report(faulty(), faulty("INIT001", "warning")), measurements=(m,)), "r0-"))
    assert [a.attributes["href"] for a in top.all("a")] == ["#r0-f0", "#r0-f1"]
    assert "cross_entropy" in top.all(class_="assumed")[0].words and "8 batches" not in top.words


def test_gauges_show_the_scores_in_words_too():
    dials = tree(gauges(report(faulty(), rules=(RuleState("GRAD001", "a", "finding"), RuleState("NUM001", "b", "not-measured", "time")))))
    assert [e.words for e in dials.all(class_="unseen")] == ["24 of 100", "no score"]
    assert "vanishing-gradient" in dials.words and "1 could not look" in dials.words


def test_a_finding_shows_message_place_source_numbers_remedies_and_its_rule():
    card = tree(findings(deep(8), "r0-")).all("details", class_="finding")[0]
    words = card.words
    assert "vanishing-gradient: 0.5 (limit 0.075)" in words and "by the measured value alone" in words
    assert "model.py:12:20" in words and "Net.__init__" in words
    assert [c.words for c in card.all("span", class_="caret")] == ["^" * 15]
    assert "12 |         self.l12 = nn.Linear(8, 8)" in card.all("pre", class_="source")[0].words
    assert [b.words for b in card.all("span", class_="badge")] == ["safe", "unsafe"]
    assert "kaiming_normal_" in [c.words for c in card.all("code")]
    assert "When to ignore it" in words and "# gradcheck: ignore[vanishing-gradient]" in words


def test_consequences_stand_under_their_cause():
    cards = tree(findings(treated(), "r0-"))
    assert len(cards.all("details", class_="finding")) == 3
    below = cards.all("div", class_="follows")[0]
    assert "loss-not-falling" in below.words and "fall of the loss" in below.words


@pytest.mark.parametrize(
    ("value", "limit", "comparison", "words", "left"),
    [(0.5, 0.05, ">", "10 times above the limit", False), (1e-9, 1e-6, "<", "1000 times below the limit", True)],
)
def test_a_number_is_drawn_against_its_limit(value, limit, comparison, words, left):
    finding = faulty(evidence=(Evidence("x", value, limit, comparison),))
    svg = tree(evidence_table(report(finding), finding)).all("svg")[0]
    assert svg.all("title")[0].words == words
    place = float(svg.all("path")[0].attributes["d"][1:].split()[0])
    assert (place < 70) == left
    healthy_side = svg.all("line", class_="healthy")[0]
    assert (float(healthy_side.attributes["x1"]) == 70) == left


@pytest.mark.parametrize(("value", "limit", "comparison"), [(0.0, 0.0, "="), (float("nan"), 1.0, ">"), (-1.0, 0.1, "<"), (3.0, None, ">")])
def test_what_has_no_ratio_to_a_limit_is_not_drawn(value, limit, comparison):
    finding = faulty(evidence=(Evidence("x", value, limit, comparison),))
    assert not tree(evidence_table(report(finding), finding)).all("svg")


def test_seeds_show_their_spread():
    finding = faulty(evidence=(Evidence("x", 2.0, 1.0, spread=(1.5, 3.0)),))
    several = replace(report(finding), measurements=(measurement(),) * 3)
    assert "1.5 to 3 over 3 seeds" in tree(evidence_table(several, finding)).words


def test_treatments_show_before_and_after_their_effect_and_their_edit():
    card = tree(findings(treated(), "r0-")).all("details", class_="finding")[0]
    kept, worse = card.all("div", class_="outcome")
    assert "tried, and it helps" in kept.words
    assert [c.words for c in kept.all("td")] == ["slope over depth, decades per layer", "0.5", "0.001", "< 0.075", "stem"]
    assert "2.3 without, 0.4 with it (difference -1.9, 95 % interval -2.1 to -1.7, 3 seeds)" in kept.words
    assert [e.words for e in kept.all("span", class_="added")] == ["+nn.init.kaiming_normal_(w)"]
    assert [e.words for e in kept.all("span", class_="removed")] == ["-nn.init.normal_(w, std=0.05)"]
    assert "it made something worse: the loss rises" in worse.words and "no longer found" in worse.words
    assert "new with it: NUM001" in worse.words and "keys change" in worse.words


def test_what_was_kept_is_proven_together():
    said = tree(proof(treated())).words
    assert "cured: GRAD001; left: INIT001" in said and "2.3 without, 0.4 with it" in said


def test_a_trial_is_ranked_and_drawn():
    said = tree(trial(treated().trial))
    rows = [[c.words for c in row.all("td")] for row in said.all("tbody")[0].all("tr")]
    assert rows[0][0] == "untreated"
    assert rows[1][:4] == ["dropout", "●helps", "-0.6", "-0.7 to -0.5"] and rows[1][5] == "accuracy 0.8"
    assert rows[2][1] == "▲failed: it raised"
    assert "dropout + l1 overlap: -0.4 together, 0.1 beyond the sum" in said.words
    assert "early-stopping is not in the edit: it belongs into the loop" in said.words
    assert len(said.all("path", class_="range")) == 4  # training and validation; the failed entry has no curve
    assert [f.all("b")[0].words.split()[0] for f in said.all("figure")] == ["Training", "Validation"]
    assert "What each did" in said.words and "dropout lowers validation loss by 0.6" in said.words
    strengths = [[c.words for c in row.all("td")] for row in said.all("tbody")[1].all("tr")]
    assert strengths == [["dropout", "rate 0.3", "0.9", ""], ["dropout", "rate 0.5", "", "pruned"]]
    assert "+nn.Dropout(0.3)" in said.all("pre")[0].words


def test_a_curve_that_blows_up_does_not_flatten_the_others():
    """2.3 and 0.9 stay far apart on the chart, beside a curve that ends at 4e6."""
    curves = [Curve((0, 50, 99), values, values, values) for values in ((2.3, 1e5, 4e6), (2.3, 1.6, 0.9))]
    axis = curve_axis(curves)
    assert axis(0.9) - axis(2.3) > 50 and axis(4e6) <= axis(2.3)


def test_one_seed_has_no_interval():
    result = treated().trial
    effect = replace(result.entries[0].effect, low=-2.0, high=math.inf, seeds=1)
    said = tree(trial(replace(result, entries=(replace(result.entries[0], effect=effect),))))
    assert [c.words for c in said.all("tbody")[0].all("tr")[1].all("td")][2:4] == ["-0.6", ""]


def test_rules_without_a_finding_say_why():
    groups = {d.all("b")[0].words: d for d in tree(states(treated())).all("details")}
    assert list(groups)[:2] == ["Known (1)", "Crashed (1)"]
    assert "ValueError: no" in groups["Crashed (1)"].words and "open" in groups["Crashed (1)"].attributes
    assert "acme-two ACME002 time" in groups["Not measured (1)"].words
    assert "warmup" not in groups["Suppressed (1)"].all("summary")[0].words and "OPT003" in groups["Suppressed (1)"].words
    assert any(name.startswith("Passed") for name in groups) and any(name.startswith("Not applicable") for name in groups)


def test_the_method_names_settings_environment_assumptions_and_times():
    said = tree(method(treated())).words
    for part in ("torch 2.13.0", "cpu, float32, 1 thread", "100; measured at 0, 1, 3", "AdamW at rate 0.001", "4 batches of 32"):
        assert part in said
    assert "assumed: no loss given" in said and "found: data: 8 batches" in said
    assert "the gradient against finite differences: time was up" in said
    assert "probe1.50 s" in said


@pytest.mark.parametrize("rule", builtin_rules(), ids=lambda rule: rule.code)
def test_every_rules_page_becomes_html_without_leftovers(rule):
    said = tree(page_html(rule))
    assert [h.words for h in said.all("h5")] == ["Why it matters", "How it is measured", "When to ignore it"]
    assert "##" not in said.words
    assert "`" not in "".join(p.words for p in said.all("p"))


def test_a_rule_of_another_pack_has_no_page():
    strange = replace(faulty(), code="ACME001", name="acme")
    card = tree(findings(report(strange), "r0-"))
    assert not card.all(class_="rule") and "ignore[acme]" in card.words


def test_a_place_in_a_package_is_named_beside_the_users_line():
    finding = faulty(location=location(12, detail=location(3, "site-packages/lib.py")))
    assert "from site-packages/lib.py:3:20" in tree(findings(report(finding), "r0-")).words


def test_a_healthy_report_says_so_and_has_no_findings():
    page = Page(render([healthy()])).root
    assert page.all("title")[0].words == "● gradcheck: healthy.py"
    assert not page.all(class_="finding") and "No findings" in page.words
