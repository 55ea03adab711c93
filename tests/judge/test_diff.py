"""Differences between two runs: what counts as a change, and what is said about it."""

from __future__ import annotations

import json
import math
import sys
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gradcheck.cli import main
from gradcheck.judge.diff import apart, diff, worse_off
from gradcheck.report import diff as shown
from gradcheck.report.diff import page
from gradcheck.types.finding import Evidence, RuleState
from tests.literals import location, measurement, run
from tests.report.reports import FAULTY, HOSTILE, INFO, WARNING, finding, report

ROOT = Path.cwd()
RAN = (RuleState("GRAD001", "vanishing-gradient", "passed"), RuleState("ACT002", "dead-units", "passed"))


def faulty(value, comparison=">", spread=None, **fields):
    return finding(evidence=(Evidence("slope", value, 0.1, comparison, spread=spread),), **fields)


def states(before, after, **options):
    (difference,) = diff([report(*before, states=RAN)], [report(*after, states=RAN)], ROOT, **options)
    return [(change.finding.name, change.state) for change in difference.findings]


def test_new_and_fixed_findings():
    assert states([FAULTY], [WARNING]) == [("dead-units", "new"), ("vanishing-gradient", "fixed")]


def test_a_rule_that_did_not_look_says_nothing():
    silent = report(states=(RuleState("GRAD001", "vanishing-gradient", "not-measured"),))
    assert [c.state for c in diff([report(FAULTY)], [silent], ROOT)[0].findings] == ["unknown"]
    assert [c.state for c in diff([silent], [report(FAULTY)], ROOT)[0].findings] == ["unknown"]


def test_numbers_change_beyond_the_tolerance_only():
    name = "vanishing-gradient"
    assert states([faulty(1.0)], [faulty(1.05)]) == [(name, "unchanged")]
    assert states([faulty(1.0)], [faulty(1.2)]) == [(name, "worse")]
    assert states([faulty(1.0)], [faulty(0.8)]) == [(name, "better")]
    assert states([faulty(1.0, "<")], [faulty(0.8, "<")]) == [(name, "worse")]
    assert states([faulty(1.0)], [faulty(1.2)], tolerance=0.5) == [(name, "unchanged")]
    assert states([faulty(1.0)], [faulty(math.nan)]) == [(name, "worse")]


def test_with_seeds_the_ranges_decide():
    assert states([faulty(1.0, spread=(0.9, 1.1))], [faulty(1.15, spread=(1.05, 1.3))]) == [("vanishing-gradient", "unchanged")]
    assert states([faulty(1.0, spread=(0.99, 1.01))], [faulty(1.03, spread=(1.02, 1.04))]) == [("vanishing-gradient", "worse")]


def test_another_severity_is_a_change():
    assert states([finding("ACT002", "warning")], [finding("ACT002", "error")]) == [("dead-units", "worse")]
    assert states([finding("ACT002", "error")], [finding("ACT002", "warning")]) == [("dead-units", "better")]


@pytest.mark.parametrize(
    ("a", "b", "different"),
    [
        ((1, 1), (1, 1), False),
        ((1, 2), (2, 3), False),
        ((1, 2), (2.001, 3), True),
        ((1, 1), (1.05, 1.05), False),
        ((1, 1), (-1, -1), True),
        ((0, 0), (0, 0), False),
        ((0, 0), (1e-9, 1e-9), True),
        ((1, 1), (math.inf, math.inf), True),
        ((math.nan, math.nan), (math.nan, math.nan), False),
    ],
)
def test_intervals(a, b, different):
    assert apart(a, b, 0.1) is apart(b, a, 0.1) is different


def test_known_findings_are_there_as_well():
    (difference,) = diff([report(FAULTY)], [report(known=(FAULTY,), states=RAN)], ROOT)
    assert [c.state for c in difference.findings] == ["unchanged"]


def test_scores_and_statistics():
    losing, winning = (report(states=RAN, measurements=(measurement(probe=run(losses)),)) for losses in ([2.0, 1.9], [2.0, 0.5]))
    (difference,) = diff([losing], [winning], ROOT)
    assert {s.name: s.state for s in difference.stats if s.state != "unchanged"} == {"loss.final": "better", "loss.ratio": "better"}
    (difference,) = diff([report(states=RAN)], [report(FAULTY, states=RAN)], ROOT)
    assert {s.name: s.state for s in difference.scores}["gradients"] == "worse"


def test_targets_are_matched_by_name_and_a_single_pair_always():
    base, head = report(FAULTY, target="old.py", states=RAN), report(FAULTY, WARNING, target="new.py", states=RAN)
    (difference,) = diff([base], [head], ROOT)
    assert difference.target == "old.py -> new.py"
    assert [(c.finding.name, c.state) for c in difference.findings] == [("dead-units", "new"), ("vanishing-gradient", "unchanged")]
    several = diff([base, report(target="same.py")], [head, report(target="same.py")], ROOT)
    assert [(d.target, d.only) for d in several] == [("new.py", "head"), ("same.py", ""), ("old.py", "base")]


def test_only_new_and_worse_warnings_and_errors_fail():
    def fails(before, after):
        return worse_off(diff([report(*before, states=RAN)], [report(*after, states=RAN)], ROOT))

    assert fails([], [WARNING]) and fails([faulty(1.0)], [faulty(2.0)])
    assert not fails([FAULTY], [FAULTY]) and not fails([FAULTY], []) and not fails([], [INFO])


def test_text_markdown_and_json_say_the_same():
    differences = diff([report(FAULTY, states=RAN)], [report(WARNING, states=RAN)], ROOT)
    text = shown.text(differences, 0.1)
    assert "dead-units (ACT002) at model.py:7" in text and "1 new, 1 fixed." in text and "10 % where there is one seed" in text
    assert any(line.split()[:2] == ["Gradient", "flow"] and line.endswith("better") for line in text.splitlines())
    assert "| dead-units (ACT002) at model.py:7 | - | 0.5 | new (warning) |" in shown.markdown(differences, 0.1)
    data = json.loads(shown.as_json(differences, 0.1))
    assert data["targets"][0]["counts"] == {"new": 1, "worse": 0, "better": 0, "fixed": 1, "unchanged": 0, "unknown": 0}


def test_hostile_names_and_numbers_stay_text():
    nasty = finding(layers=(HOSTILE,), evidence=(Evidence(HOSTILE, math.inf, 1.0),))
    differences = diff([report()], [report(nasty, target=HOSTILE, states=RAN)], ROOT)
    json.loads(shown.as_json(differences, 0.1), parse_constant=lambda name: pytest.fail(name))
    assert "\x1b" not in shown.text(differences, 0.1) + shown.markdown(differences, 0.1)


def test_the_page_says_it_too_and_takes_nothing_from_names_as_markup():
    nasty = finding("ACT002", "warning", message=HOSTILE, location=location(7, path='<b id="x">.py'))
    text = page(diff([report(FAULTY, states=RAN)], [report(nasty, target=HOSTILE, states=RAN[:1])], ROOT), 0.1)
    seen: list[tuple[str, list[tuple[str, str | None]]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: seen.append((tag, attributes))  # type: ignore[method-assign]
    parser.feed(text)
    assert {tag for tag, _ in seen}.isdisjoint({"b", "script"} - {"b"}) and not [a for t, a in seen if t == "b" and a]
    (policy,) = (dict(a)["content"] for t, a in seen if t == "meta" and ("http-equiv", "Content-Security-Policy") in a)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert policy.startswith("default-src 'none'; ") and b64encode(sha256(style.encode()).digest()).decode() in policy
    assert "vanishing-gradient (GRAD001)" in text and "&lt;b onload=x&gt;" in text and "http://" not in text and "https://" not in text


@pytest.fixture
def runs(tmp_path, monkeypatch, capsys):
    """Runs `gradcheck diff` on two saved runs: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    report(FAULTY, states=RAN).to_json("base.json")
    report(FAULTY, WARNING, states=RAN).to_json("head.json")

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["gradcheck", "diff", *words])
        with pytest.raises(SystemExit) as stop:
            main.main()
        return stop.value.code or 0, *capsys.readouterr()

    return call


def test_the_command(runs):
    assert runs("base.json", "head.json")[0] == 0
    assert runs("base.json", "head.json", "--fail-on-new")[0] == 1
    assert runs("head.json", "base.json", "--fail-on-new")[0] == 0
    assert runs("base.json", "head.json", "--format", "markdown")[1].startswith("<!-- gradcheck -->")
    assert runs("base.json", "head.json", "--format", "html")[1].startswith("<!doctype html>")
    for words in (
        ("base.json", "missing.json"),
        ("base.json", "head.json", "--format", "pdf"),
        ("base.json", "head.json", "--tolerance", "-1"),
    ):
        code, out, err = runs(*words)
        assert code == 2 and not out and err.startswith("error: ")
