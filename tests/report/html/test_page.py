"""The page as a document: self-contained, closed off from the network, complete, small, quick; and nothing in it comes alive from data."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from base64 import b64encode
from collections.abc import Collection
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from gradcheck.report.html import render
from gradcheck.report.html.markup import join, tag
from gradcheck.saved_run import dumps, load
from gradcheck.types.report import Report
from tests.literals import measurement
from tests.report.html.pages import Page, deep, healthy, states, treated

KILOBYTE = 1024
REPORTS = {"treated": treated, "healthy": healthy, "5 layers": lambda: deep(5)}


@pytest.fixture(scope="module")
def page():
    return Page(render([treated()]))


def hash_of(content):
    return "'sha256-" + b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"


@pytest.mark.parametrize("name", REPORTS)
def test_every_element_is_closed_and_every_id_is_unique_and_every_reference_has_its_target(name):
    tree = Page(render([REPORTS[name](), REPORTS[name]()])).root
    ids = [e.attributes["id"] for e in tree.all() if e.attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = [e.attributes["href"][1:] for e in tree.all() if (e.attributes.get("href") or "").startswith("#")]
    labels = [e.attributes["aria-labelledby"] for e in tree.all() if e.attributes.get("aria-labelledby")]
    assert links and labels and set(links) | set(labels) <= set(ids)


def test_nothing_is_taken_from_anywhere_else(page):
    for element in page.root.all():
        assert element.tag not in ("link", "iframe", "object", "embed", "base", "form", "img", "audio", "video")
        for name, value in element.attributes.items():
            if name in ("src", "href", "data", "action", "srcset", "poster"):
                assert value.startswith(("#", "data:image/png;base64,")), (element.tag, name, value[:60])
            assert not name.startswith("on") and name != "style", (element.tag, name)
    source = render([treated()])
    assert not re.search(r"https?:|@import|url\((?!#)|fetch\(|XMLHttpRequest|WebSocket", source)


def test_the_policy_allows_this_style_and_this_script_only(page):
    policy = next(e for e in page.root.all("meta") if e.attributes.get("http-equiv")).attributes["content"]
    rules = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    scripts = [e for e in page.root.all("script") if e.attributes.get("type") != "application/json"]
    assert rules["default-src"] == "'none'"
    assert rules["style-src"] == hash_of(page.root.all("style")[0].words)
    assert [rules["script-src"]] == [hash_of(s.words) for s in scripts]
    assert rules["img-src"] == "data:"


def test_all_sections_are_there(page):
    titles = [e.words for e in page.root.all("h3")]
    wanted = ["Trial", "Scan", "Findings", "Over depth", "Treatment", "Losses", "Layers (12)", "Distributions"]
    assert titles == [*wanted, "Rules without a finding", "Method and settings"]


def test_nothing_waits_for_scripts_but_what_only_scripts_can_do(page):
    hidden = [e for e in page.root.all() if "hidden" in e.attributes]
    assert {e.attributes["id"] for e in hidden} == {"tip", "theme", "unfold"}


@pytest.fixture(scope="module")
def thousand():
    return deep(1000)


def size_of(report):
    return len(render([report]).encode()) / KILOBYTE


def test_the_page_is_small(thousand):
    assert size_of(deep(100)) <= 104
    assert size_of(thousand) <= 600


def test_the_work_for_a_layer_does_not_grow_with_their_number(thousand):
    assert _calls(thousand) < 11 * _calls(deep(100))


def _calls(report):
    """The number of functions that are called while the page is made."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        render([report])
    finally:
        sys.setprofile(None)
    return calls


def test_several_reports_are_one_page_with_a_table_of_contents():
    tree = Page(render([treated(), healthy()])).root
    rows = tree.all("nav")[0].all("li")
    assert [r.all("a")[0].words for r in rows] == ["model.py:Net", "healthy.py"]
    assert "predicted to fail" in rows[0].words and "predicted to fail" not in rows[1].words
    assert len(tree.all("article")) == 2


def test_one_report_lists_its_sections_and_no_targets():
    (nav,) = Page(render([treated()])).root.all("nav")
    assert nav.has("class", "sections") and nav.all("a")[0].words == "Trial"


def test_there_is_one_heading_of_the_first_level_and_no_level_is_left_out():
    for reports in ([treated()], [treated(), healthy()]):
        levels = [int(e.tag[1]) for e in Page(render(reports)).root.all() if e.tag in ("h1", "h2", "h3", "h4", "h5")]
        assert levels.count(1) == 1 and levels[0] == 1
        assert all(b <= a + 1 for a, b in pairwise(levels))


def test_a_training_that_was_never_measured_makes_a_page():
    empty = measurement(layers=(), parameters=(), measured_steps=(), losses=(), probe=replace(measurement().probe, losses=()))
    tree = Page(render([Report("train.py", (), states(), (empty,))])).root
    assert [e.words for e in tree.all("h3")] == ["Rules without a finding", "Method and settings"]


def test_to_html_writes_what_it_returns(tmp_path):
    path = tmp_path / "report.html"
    assert healthy().to_html(path) == path.read_text(encoding="utf-8") == healthy().to_html()


# ------------------------------------------------------------------------ hostile names

HOSTILE = "\"'><script>evil()</script></style></title></svg><img src=x onerror=evil()>\u202e\x00\n\t&lt;\\"
# Strings that are chosen from a list, which a saved run is checked for.
CLOSED = {"kind", "severity", "status", "comparison", "applicability", "ended", "stage", "task", "target_kind", "code", "cause", "about"}
CLOSED |= {"findings", "cured", "new", "left", "snippets", "used_by", "lack", ("interactions", "verdict"), ("searched", "state")}


def rewritten(report: Report, word: str, folder: Path, kept: Collection[str] = ()) -> Report:
    """The report with every free string replaced by `word` and a number of its own, but those of the keys in `kept`."""
    numbers: dict[str, int] = {}

    def other(value, key="", above=""):
        if key in CLOSED or key in kept or (above, key) in CLOSED or value in ("NaN", "Infinity", "-Infinity", ""):
            return value
        if isinstance(value, dict):
            return {k: other(v, k, key) for k, v in value.items()}
        if isinstance(value, list):
            return [other(v, key, above) for v in value]
        return f"{word}{numbers.setdefault(value, len(numbers))}" if isinstance(value, str) else value

    path = folder / "run.json"
    path.write_text(json.dumps(other(json.loads(dumps(report)))))
    return load(path)


def test_names_from_the_users_code_stay_text(tmp_path):
    harmless = Page(render([rewritten(treated(), "name", tmp_path)] * 2))
    hostile = Page(render([rewritten(treated(), HOSTILE, tmp_path)] * 2))
    assert hostile.starts == harmless.starts  # the same elements with the same attributes, whatever the names are
    words = hostile.root.words
    assert words.count("<script>evil()</script>") > 50  # shown as it is
    assert "\u202e" not in words and "\x00" not in words
    assert "\\u202e" in words and "\\x00" in words


def test_the_test_for_hostile_names_can_fail():
    bare = join(tag("p", "x"))
    assert Page(bare).starts != Page(str(bare).replace("x", HOSTILE.partition("</style>")[0])).starts


def test_source_lines_stay_text():
    report = treated()
    lines = {n: f"    {HOSTILE}".replace("\n", "") for n in range(8, 20)}
    m = replace(report.measurement, snippets={"model.py": lines})
    tree = Page(render([replace(report, measurements=(m,))])).root
    assert "<img src=x onerror=evil()>" in tree.all("pre", class_="source")[0].words
    assert not tree.all("img")
